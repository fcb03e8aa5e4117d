"""Checkpoints of the SimpleViT with projected relative positions."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, public_simple_vit

_BIAS, _THEIRS = f"{BLOCK}.bias", "transformer.layers.{i}.0.rel_pos_bias"
FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with projected relative positions",
        Rule(f"{_BIAS}.to_distance_weights.{{p}}", f"{_THEIRS}.to_distance_weights.0.{{p}}"),
        Rule(f"{_BIAS}.distance_banks", f"{_THEIRS}.distance_banks"),
    ),
)
