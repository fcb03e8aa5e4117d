"""Checkpoints of the SimpleViT with value residuals."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, OURS, PUBLIC_SIMPLE_VIT

# The public package's gate gives the share of a layer's own values, ours that of the first layer's.
NEGATED = Transform(lambda parts, module: -parts[0], lambda tensor, module: (-tensor,))
_GATE = "transformer.layers.{i}.0.to_residual_mix.0.{p}"

PUBLIC = replace(
    PUBLIC_SIMPLE_VIT,
    name="vit-pytorch SimpleViT with value residual",
    rules=(
        Rule(f"{BLOCK}.attention.value_mix.gate.{{p}}", _GATE, NEGATED),
        Rule(f"{BLOCK}.norm2.{{p}}", "transformer.layers.{i}.1.0.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "transformer.layers.{i}.1.1.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "transformer.layers.{i}.1.3.{p}"),
        *PUBLIC_SIMPLE_VIT.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
