"""Checkpoints of the SimpleViT with fused attention."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import OURS, public_simple_vit

FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with flash attention",
        Rule("fc_norm.{p}", "linear_head.0.{p}"),
        Rule("head.{p}", "linear_head.1.{p}"),
    ),
)
