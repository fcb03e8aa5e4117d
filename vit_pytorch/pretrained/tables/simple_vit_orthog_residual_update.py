"""Checkpoints of the SimpleViT with orthogonal residual updates."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, public_simple_vit

FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with orthogonal updates",
        Rule(f"{BLOCK}.update1.to_shares.{{p}}", "transformer.layers.{i}.0.to_modulation.{p}"),
        Rule(f"{BLOCK}.update2.to_shares.{{p}}", "transformer.layers.{i}.1.to_modulation.{p}"),
        attention="transformer.layers.{i}.0.block",
        feedforward="transformer.layers.{i}.1.block.net",
    ),
)
