"""Checkpoints of $kind."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Reference, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

# FILL: a name that tells our checkpoints from others'.
OURS = own_format("blocks.0.attention.to_qkv.weight")
TIMM = Format(
    name="timm",
    # FILL: a name that tells theirs.
    marks=("blocks.0.attn.qkv.weight",),
    # FILL: ours and theirs of each parameter and statistic, each rule once.
    rules=(
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        *timm_block("blocks.{i}", "blocks.{i}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
# FILL: a small model of theirs, and ours with the same function; tests and benchmarks load one into the other.
REFERENCES: tuple[Reference, ...] = ()
