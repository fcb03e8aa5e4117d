"""Checkpoints of LocalViT."""

from __future__ import annotations

from typing import Any

from vit_pytorch.pretrained.rules import NumberedFormat, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "blocks.{i}"
LOCAL = f"{BLOCK}.feedforward"
THEIRS = "blocks.{i}.conv.conv"


class GateFormat(NumberedFormat):
    """A layout in which the last layer and its norm come one place earlier where there is no gate."""

    def places(self, model: Any) -> dict[str, str]:
        """Return where layers are in a block with a gate; see `NumberedFormat.places`."""
        blocks = enumerate(model.blocks)
        bare = [layer for layer, block in blocks if len(block.feedforward.depthwise.layers) == 5]
        conv = "blocks.{}.conv.conv.{}."
        return {conv.format(layer, n): conv.format(layer, n + 1) for layer in bare for n in (7, 6)}


OURS = own_format("blocks.0.feedforward.expand.weight")
AUTHORS = GateFormat(
    name="LocalViT",
    marks=("blocks.0.conv.conv.0.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        *timm_block(BLOCK, "blocks.{i}")[:3],
        Rule(f"{LOCAL}.expand.weight", f"{THEIRS}.0.weight", POINTWISE),
        Rule(f"{LOCAL}.depthwise.layers.0.{{name}}", f"{THEIRS}.1.{{name}}"),
        Rule(f"{LOCAL}.depthwise.layers.2.weight", f"{THEIRS}.3.weight"),
        Rule(f"{LOCAL}.depthwise.layers.3.{{name}}", f"{THEIRS}.4.{{name}}"),
        Rule(f"{LOCAL}.depthwise.layers.5.squeeze.{{p}}", f"{THEIRS}.6.fc.0.{{p}}"),
        Rule(f"{LOCAL}.depthwise.layers.5.excite.{{p}}", f"{THEIRS}.6.fc.2.{{p}}"),
        Rule(f"{LOCAL}.depthwise.layers.5.conv.weight", f"{THEIRS}.6.conv.weight"),
        Rule(f"{LOCAL}.project.weight", f"{THEIRS}.7.weight", POINTWISE),
        Rule(f"{LOCAL}.norm.layers.0.{{name}}", f"{THEIRS}.8.{{name}}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS)
