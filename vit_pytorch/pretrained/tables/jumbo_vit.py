"""Checkpoints of the jumbo ViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "blocks.{i}"

OURS = own_format("jumbo_feedforward.to_hidden.weight")
AUTHORS = Format(
    name="jumbo",
    marks=("jumbo_mlp.fc1.weight",),
    # Their code inherits a class token that nothing reads.
    unused=("cls_token",),
    rules=(
        Rule("prefix.registers", "jumbo_token"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        *timm_block(BLOCK, "blocks.{i}"),
        Rule(f"{BLOCK}.jumbo_norm.{{p}}", "blocks.{i}.norm3.{p}"),
        Rule("jumbo_feedforward.to_hidden.{p}", "jumbo_mlp.fc1.{p}"),
        Rule("jumbo_feedforward.to_out.{p}", "jumbo_mlp.fc2.{p}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS)
