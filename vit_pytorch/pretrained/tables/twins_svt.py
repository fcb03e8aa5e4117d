"""Checkpoints of Twins."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import positioned_stages

BLOCK = "stages.{i}.blocks.{j}.attention"
THEIRS = "blocks.{i}.{j}.attn"

OURS = own_format("stages.0.blocks.0.positions.conv.weight")
# The authors' files have the same names.
TIMM = Format(
    name="timm",
    marks=("pos_block.0.proj.0.weight",),
    rules=(
        *positioned_stages(),
        Rule(f"{BLOCK}.attention.to_qkv.{{p}}", f"{THEIRS}.qkv.{{p}}"),
        Rule(f"{BLOCK}.attention.to_q.{{p}}", f"{THEIRS}.q.{{p}}"),
        Rule(f"{BLOCK}.attention.to_kv.{{p}}", f"{THEIRS}.kv.{{p}}"),
        Rule(f"{BLOCK}.summary.0.layers.0.{{p}}", f"{THEIRS}.sr.{{p}}"),
        Rule(f"{BLOCK}.summary.1.{{p}}", f"{THEIRS}.norm.{{p}}"),
        Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{THEIRS}.proj.{{p}}"),
    ),
)
FORMATS = (OURS, TIMM)
