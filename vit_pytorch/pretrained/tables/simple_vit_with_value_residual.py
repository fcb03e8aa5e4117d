"""Checkpoints of the SimpleViT with value residuals."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, public_simple_vit

# The public package's gate gives the share of a layer's own values, ours that of the first layer's.
NEGATED = Transform(lambda parts, module: -parts[0], lambda tensor, module: (-tensor,))
_GATE = "transformer.layers.{i}.0.to_residual_mix.0.{p}"

FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with value residual",
        Rule(f"{BLOCK}.attention.value_mix.gate.{{p}}", _GATE, NEGATED),
        feedforward="transformer.layers.{i}.1",
    ),
)
