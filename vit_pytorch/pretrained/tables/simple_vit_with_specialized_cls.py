"""Checkpoints of the SimpleViT whose class token has norms and projections of its own."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule, own_format
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, QKV, public_simple_vit
from vit_pytorch.pretrained.tables.vit_3d import TOKEN

LAYER = "transformer.layers.{i}"
PARTS = {"class_token": 0, "patches": 1}

FORMATS = (
    own_format("norm.patches.weight"),
    public_simple_vit(
        "SimpleViT with specialized class token",
        Rule("prefix.class_token", "cls_token", TOKEN),
        *(Rule(f"norm.{ours}.{{p}}", f"transformer.norm.fns.{part}.{{p}}") for ours, part in PARTS.items()),
        *(
            Rule(f"{ours}.{name}.{{p}}", f"{LAYER}.{theirs}.fns.{part}.{{p}}")
            for name, part in PARTS.items()
            for ours, theirs in (
                (f"{BLOCK}.norm1", "0.norm"),
                (QKV, "0.to_qkv"),
                (f"{BLOCK}.norm2", "1.norm"),
            )
        ),
        Rule(f"{HIDDEN}.{{p}}", f"{LAYER}.1.net.0.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{LAYER}.1.net.2.{{p}}"),
    ),
)
