"""Checkpoints of Visformer."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

STAGES = range(3)
# Positions as a map (1, channels, height, width).
MAP = Transform(
    lambda parts, down: parts[0].flatten(2).mT,
    lambda table, down: (table.mT.unflatten(2, down.positions.grid),),
)


def _stage(i: int) -> tuple[Rule, ...]:
    """Return the rules of a stage."""
    down, ours, theirs = f"stages.{i}.down", f"stages.{i}.blocks.{{j}}", f"stage{i + 1}.{{j}}"
    return (
        Rule(f"{down}.embed.layers.0.{{p}}", f"patch_embed{i + 1}.proj.{{p}}"),
        Rule(f"{down}.embed.layers.1.{{name}}", f"patch_embed{i + 1}.norm.{{name}}"),
        Rule(f"{down}.positions.table", f"pos_embed{i + 1}", MAP),
        *(Rule(f"{ours}.norm{k}.{{name}}", f"{theirs}.norm{k}.{{name}}") for k in (1, 2)),
        Rule(f"{ours}.attention.attention.to_qkv.weight", f"{theirs}.attn.qkv.weight", POINTWISE),
        Rule(f"{ours}.attention.attention.to_out.weight", f"{theirs}.attn.proj.weight", POINTWISE),
        Rule(f"{ours}.feedforward.to_hidden.weight", f"{theirs}.mlp.conv1.weight", POINTWISE),
        Rule(f"{ours}.feedforward.conv.layers.0.weight", f"{theirs}.mlp.conv2.weight"),
        Rule(f"{ours}.feedforward.to_out.weight", f"{theirs}.mlp.conv3.weight", POINTWISE),
    )


OURS = own_format("stages.0.blocks.0.feedforward.conv.layers.0.weight")
TIMM = Format(
    name="timm",
    marks=("stage1.0.mlp.conv1.weight",),
    rules=(
        Rule("stem.layers.0.conv.weight", "stem.0.weight"),
        Rule("stem.layers.0.norm.{name}", "stem.1.{name}"),
        *(rule for i in STAGES for rule in _stage(i)),
        Rule("norm.{name}", "norm.{name}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
