"""Checkpoints of the SimpleViT with fused attention."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import OURS, PUBLIC_SIMPLE_VIT

PUBLIC = replace(
    PUBLIC_SIMPLE_VIT,
    name="vit-pytorch SimpleViT with flash attention",
    rules=(
        Rule("fc_norm.{p}", "linear_head.0.{p}"),
        Rule("head.{p}", "linear_head.1.{p}"),
        *PUBLIC_SIMPLE_VIT.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
