"""Checkpoints of RegionViT."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vit_pytorch.pretrained.rules import SAME, Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCKS = range(64)
BLOCK = "stages.{i}.blocks"


def _maps(rows: Tensor) -> tuple[Tensor, int]:
    """Return the offsets of each head as a map, and how far theirs, centred at half a window, is shifted."""
    side = isqrt(rows.shape[1])
    window = (side + 1) // 2
    return rows.unflatten(1, (side, side)), window - 1 - window // 2


def _from_theirs(parts: Sequence[Tensor], module: Any) -> Tensor:
    """Theirs has a row for each head, and counts key - query around the end of the axes."""
    maps, shift = _maps(parts[0])
    return maps.flip(1, 2).roll((-shift, -shift), (1, 2)).flatten(1).T


def _to_theirs(table: Tensor, module: Any) -> tuple[Tensor]:
    maps, shift = _maps(table.T)
    return (maps.roll((shift, shift), (1, 2)).flip(1, 2).flatten(1),)


def _fit_square(parts: Sequence[Tensor], layers: Any) -> Tensor:
    """Interpolate the embedding of regions to the model's window, as the authors' tool does."""
    weight = parts[0]
    size = layers[0].kernel_size
    if tuple(weight.shape[2:]) == tuple(size):
        return weight
    return F.interpolate(weight.float(), size, mode="bicubic").to(weight.dtype)


TABLE = Transform(_from_theirs, _to_theirs)
SQUARE = Transform(_fit_square, SAME.write)
# A vector that theirs has as a map of one cell.
CELL = Transform(
    lambda parts, module: parts[0].flatten(), lambda tensor, module: (tensor[None, :, None, None],)
)


def _twice(transform: Transform) -> Transform:
    """Theirs names a tensor twice."""
    return Transform(transform.read, lambda tensor, module: 2 * tuple(transform.write(tensor, module)))


def _block(j: int) -> tuple[Rule, ...]:
    ours, theirs = f"{BLOCK}.{j}", f"layers.{{i}}.block.{j + 1}"
    return (
        *timm_block(ours, theirs),
        Rule(f"{ours}.regional_norm.{{p}}", f"{theirs}.norm0.{{p}}"),
        Rule(f"{ours}.bias.table", f"{theirs}.attn.rel_pos", TABLE),
    )


def _narrow(ours: str, index: int, transform: Transform) -> Rule:
    names = tuple(f"layers.{{i}}.block.0.{proj}.{index}.{{p}}" for proj in ("proj", "proj_cls"))
    return Rule(f"stages.{{i}}.down.{ours}.{{p}}", names, _twice(transform))


OURS = own_format("stages.0.blocks.0.regional_norm.weight")
OURS = Format(
    name=OURS.name,
    marks=OURS.marks,
    rules=(
        Rule("stem.regional.layers.0.weight", "stem.regional.layers.0.weight", SQUARE),
        *OURS.rules,
    ),
)
AUTHORS = Format(
    name="regionvit",
    marks=("layers.0.block.1.attn.rel_pos",),
    rules=(
        # Three convolutions, or one.
        *(Rule(f"stem.local.{k}.layers.0.{{p}}", f"patch_embed.proj.{k}.{{p}}") for k in (0, 3, 6)),
        *(Rule(f"stem.local.{k}.{{p}}", f"patch_embed.proj.{k}.{{p}}", CELL) for k in (1, 4)),
        Rule("stem.local.layers.0.{p}", "patch_embed.proj.{p}"),
        Rule("stem.regional.layers.0.weight", "cls_token.proj.weight", SQUARE),
        Rule("stem.regional.layers.0.bias", "cls_token.proj.bias"),
        _narrow("norm", 0, CELL),
        _narrow("conv.layers.0", 2, SAME),
        *(rule for j in BLOCKS for rule in _block(j)),
        Rule(f"{BLOCK}.0.positions.conv.{{p}}", "layers.{i}.peg.{p}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS)
