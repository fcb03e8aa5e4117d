"""Checkpoints of NesT."""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from vit_pytorch.layers.windows import windows
from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.blocks.{j}"
THEIRS = "levels.{i}.transformer_encoder.{j}"


def _from_blocks(table: Tensor) -> Tensor:
    """Positions of (1, blocks, tokens of a block, channels), which are square, in row-major order."""
    _, regions, tokens, _ = table.shape
    side = isqrt(regions * tokens)
    return windows((isqrt(tokens),) * 2).merge(table[0], (side, side)).flatten(1, 2)


def _to_blocks(table: Tensor, grid: tuple[int, int], regions: int) -> Tensor:
    blocks = windows((grid[0] // regions, grid[1] // regions))
    return blocks.split(table.unflatten(1, grid))[None]


POSITIONS = Transform(
    lambda parts, level: _from_blocks(parts[0]),
    lambda table, level: (_to_blocks(table, level.positions.grid, level.regions),),
)
# Their heads are the inner axis of what is projected, ours the outer.
HEADS_INNER = Transform(
    lambda parts, attention: parts[0].unflatten(1, (-1, attention.heads)).transpose(1, 2).flatten(1),
    lambda tensor, attention: (tensor.unflatten(1, (attention.heads, -1)).transpose(1, 2).flatten(1),),
)

OURS = own_format("stages.0.blocks.0.attention.to_qkv.weight")
TIMM = Format(
    name="timm",
    marks=("levels.0.transformer_encoder.0.attn.qkv.weight",),
    rules=(
        Rule("stages.0.down.layers.0.{p}", "patch_embed.proj.{p}"),
        Rule("stages.{i}.down.conv.layers.0.{p}", "levels.{i}.pool.conv.{p}"),
        Rule("stages.{i}.down.norm.{p}", "levels.{i}.pool.norm.{p}"),
        Rule("stages.{i}.positions.table", "levels.{i}.pos_embed", POSITIONS),
        Rule(f"{BLOCK}.attention.to_out.weight", f"{THEIRS}.attn.proj.weight", HEADS_INNER),
        *timm_block(BLOCK, THEIRS),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
