"""Checkpoints of the ViT with a loss of correlations."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, OURS, PUBLIC_VIT

_LAYER = "transformer.layers.{i}.1"
PUBLIC = replace(
    PUBLIC_VIT,
    name="vit-pytorch ViT with decorrelation",
    rules=(
        Rule(f"{BLOCK}.norm2.{{p}}", f"{_LAYER}.norm.{{p}}"),
        Rule(f"{HIDDEN}.{{p}}", f"{_LAYER}.net.0.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{_LAYER}.net.3.{{p}}"),
        Rule("decorr_loss.proj", "decorr_loss.proj"),
        *PUBLIC_VIT.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
