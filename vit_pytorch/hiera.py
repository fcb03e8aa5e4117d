"""Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles.

C. Ryali, Y.-T. Hu, D. Bolya et al. 2023, arXiv:2306.00989.

A plain transformer on maps of falling resolution, without convolutions, relative positions or shifted
windows: attention is within mask units, windows of fixed pixels, in the first two stages, and of all cells
in the others; between stages queries are pooled by the maximum of 2 x 2 cells.

Family: hierarchical
Differs from the paper: images alone, not videos; maps are pooled where they lie instead of by reordered
tokens, which gives the same values; masked pre-training is not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, heads_per_stage
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, fx_leaf, layer
from vit_pytorch.layers.conv import OnMap
from vit_pytorch.layers.init import EMBEDDING_STD, init_embeddings, init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.positions import LearnedPositions, Positions, resize_table
from vit_pytorch.layers.windows import WHOLE, Partition, crop_map, pad_map, windows

# Pixels from one cell of the first stage to the next.
STRIDE = 4


class Hiera(HierarchicalModel):
    """Hiera.

    Args:
        image_size: the largest input, one number or (height, width) in pixels, multiples of a mask unit's.
        dim: channels of the first stage, which double from stage to stage, or of each.
        depth: blocks of each stage.
        heads: heads of the first stage, which double from stage to stage, or of each.
        mask_unit_size: side of a mask unit in cells of the first stage; halved with each stage.
        windowed_stages: so many stages attend within mask units.
        position_grid: rows and columns of learned positions that are stretched over the map, in addition to
            those of the cells of a mask unit (D. Bolya et al. 2023, arXiv:2311.05613); default one position
            for each cell.
        project_shortcut: where the channels double, the shortcut is a projection; otherwise the maximum and
            the mean of pooled cells, concatenated.
        mlp_ratio: hidden dimension of the feed-forward by channels.

    Raises:
        ValueError: if heads do not share the channels, a mask unit cannot be halved with each stage, or the
            shortcut cannot be concatenated.
    """

    # timm lets what the cells of a mask unit share decay.
    undecayed = r"^stem\.positions\.table$"

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int | Sequence[int] = 224,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (2, 3, 16, 3),
        heads: int | Sequence[int] = 1,
        channels: int = 3,
        mask_unit_size: int = 8,
        windowed_stages: int = 2,
        position_grid: int | Sequence[int] | None = None,
        project_shortcut: bool = True,
        mlp_ratio: int | float = 4,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, per_stage("heads", heads, count))
        if mask_unit_size % 2 ** (count - 1):
            raise ValueError(
                f"mask_unit_size must be a multiple of 2 ** {count - 1} with {count} stages, "
                f"got {mask_unit_size}"
            )
        if not project_shortcut and any(b != 2 * a for a, b in pairwise(dims)):
            raise ValueError(f"project_shortcut=False needs channels that double, got {dims}")
        size, multiple = pair(image_size), STRIDE * mask_unit_size
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=[STRIDE * 2**stage for stage in range(count)],
            channels=channels,
            size_multiple=(multiple, multiple),
            min_size=(multiple, multiple),
            any_size=position_grid is not None,
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        grid = (size[0] // STRIDE, size[1] // STRIDE)
        positions: Positions = (
            LearnedPositions(grid, dims[0])
            if position_grid is None
            else MaskUnitPositions(pair(position_grid), mask_unit_size, dims[0])
        )
        self.stem = PositionedStem(channels, dims[0], positions)
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            blocks: list[Block] = []
            for index, rate in enumerate(rates):
                pools = stage > 0 and index == 0
                # The first block of a stage attends on the map of the stage before.
                place = stage - 1 if pools else stage
                blocks.append(
                    mask_unit_block(
                        dims[place],
                        dims[stage],
                        heads=all_heads[stage],
                        unit=mask_unit_size >> place if place < windowed_stages else None,
                        pool=pools,
                        mlp_ratio=mlp_ratio,
                        project_shortcut=project_shortcut,
                        dropout=dropout,
                        norm=norm,
                        layer_scale=layer_scale,
                        drop_path=rate,
                    )
                )
            self.stages.append(Stage(nn.Identity(), blocks))
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.fc_norm = norm(dims[-1])
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; the norm acts on its mean."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


def mask_unit_block(
    dim: int,
    out_dim: int,
    *,
    heads: int,
    unit: int | None,
    pool: bool,
    mlp_ratio: int | float = 4,
    project_shortcut: bool = True,
    dropout: float = 0.0,
    **options: Any,
) -> Block:
    """Build a block whose attention is within mask units.

    Args:
        dim: channels of the map.
        out_dim: channels of the output.
        unit: side of a mask unit in cells of the map; None for all cells.
        pool: halve the map.
        mlp_ratio: see `Hiera`.
        project_shortcut: see `Hiera`.
        options: of `Block`.
    """
    attention = MaskUnitAttention(dim, out_dim, heads=heads, unit=unit, pool=pool, dropout=dropout)
    feedforward = FeedForward(out_dim, int(out_dim * mlp_ratio), dropout=dropout)
    if not pool:
        return Block(out_dim, attention, feedforward, **options)
    return PoolingBlock(dim, out_dim, attention, feedforward, project_shortcut=project_shortcut, **options)


class PoolingBlock(Block):
    """The first block of a stage: its branch and its shortcut halve the map (section 3.2).

    Args:
        dim: channels of the stage before.
        out_dim: channels of the stage.
        attention: returns the smaller map.
        project_shortcut: see `Hiera`.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        project_shortcut: bool,
        **options: Any,
    ) -> None:
        super().__init__(out_dim, attention, feedforward, **options)
        self.norm1 = options["norm"](dim)
        self.shortcut = nn.Linear(dim, out_dim) if project_shortcut else None

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        normed = self.norm1(x)
        if self.shortcut is not None:
            x = square_cells(self.shortcut(normed)).amax(dim=3)
        else:
            cells = square_cells(x)
            x = torch.cat([cells.amax(dim=3), cells.mean(dim=3)], dim=-1)
        x = x + self.drop_path(self.scale1(self.attention(normed, inputs)))
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))


class MaskUnitAttention(nn.Module):
    """Attention within mask units, or among all cells, whose queries may be pooled (section 3.2).

    Cells of zeros fill a map up to whole mask units, and are seen.

    Args:
        dim: channels of the map.
        out_dim: channels of the output.
        unit: side of a mask unit in cells of the map; None for all cells.
        pool: take the maximum of 2 x 2 queries.
    """

    def __init__(
        self, dim: int, out_dim: int, *, heads: int, unit: int | None, pool: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.pool = pool
        self.units = WHOLE if unit is None else windows((unit, unit))
        self.pooled_units = WHOLE if unit is None else windows((unit // 2, unit // 2)) if pool else self.units
        self.attention = Attention(
            dim, heads=heads, dim_head=out_dim // heads, out_dim=out_dim, dropout=dropout
        )

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b y x e"]:
        """Attend from each cell, or from each 2 x 2 cells, to the cells of their mask unit."""
        size: Sequence[int] = x.shape[1:3]
        padded = pad_map(x, self.units.multiple)
        grid: Sequence[int] = padded.shape[1:3]
        q, k, v = self.attention.project(self.units.split(padded))
        if self.pool:
            q, grid, size = pool_queries(q, self.units, grid), halved(grid), halved(size)
        mixed = self.attention.merge(self.attention.attend(q, k, v, inputs))
        return crop_map(self.pooled_units.merge(mixed, grid), size)


@fx_leaf
def halved(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the rows and columns of a pooled map."""
    return tuple(extent // 2 for extent in grid)


@fx_leaf
def pool_queries(
    q: Float[Tensor, "g h n e"], units: Partition, grid: Sequence[int]
) -> Float[Tensor, "g h m e"]:
    """Return the maximum of 2 x 2 neighbouring queries of each mask unit of a map."""
    rows, columns = units.cells(grid)
    return q.unflatten(2, (rows // 2, 2, columns // 2, 2)).amax(dim=(3, 5)).flatten(2, 3)


@fx_leaf
def square_cells(x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x 4 d"]:
    """Gather 2 x 2 cells of a map."""
    height, width = x.shape[1:3]
    cells = x.unflatten(2, (width // 2, 2)).unflatten(1, (height // 2, 2))
    return cells.transpose(2, 3).flatten(3, 4)


class PositionedStem(nn.Module):
    """A convolution over overlapping patches, and positions.

    Args:
        positions: has a table for the cells of any map.
    """

    def __init__(self, channels: int, dim: int, positions: Positions) -> None:
        super().__init__()
        self.embed = OnMap(nn.Conv2d(channels, dim, 7, STRIDE, 3))
        self.positions = positions

    def forward(self, images: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the first map."""
        x = self.embed(images)
        return (x.flatten(1, 2) + self.positions.table_for(x.shape[1:3])).reshape(x.shape)


class MaskUnitPositions(Positions):
    """Learned positions that are stretched over a map, and those within a mask unit (arXiv:2311.05613).

    Interpolated alone, positions of windows would lose what they say of places within one.

    Args:
        grid: rows and columns of the table that is stretched.
        unit: side of a mask unit.
        antialias: interpolate by Pillow's cubic kernel, which low-passes where the table shrinks.
    """

    def __init__(self, grid: Sequence[int], unit: int, dim: int, *, antialias: bool = True) -> None:
        super().__init__(grid)
        self.unit = (unit, unit)
        self.antialias = antialias
        self.table = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        self.within = nn.Parameter(torch.empty(1, unit * unit, dim))
        # The sum of two has the variance of one.
        init_embeddings(self.table, self.within, std=EMBEDDING_STD / 2**0.5)

    def table_for(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Return the embeddings of a map's cells."""
        table = stretched(self.table, self.grid, grid, antialias=self.antialias)
        return table + tiled(self.within, self.unit, grid)


@fx_leaf
def stretched(
    table: Float[Tensor, "1 n d"], own: Sequence[int], grid: Sequence[int], *, antialias: bool
) -> Float[Tensor, "1 m d"]:
    """Interpolate a table to the cells of a map."""
    return resize_table(table, own, tuple(grid), antialias=antialias)


@fx_leaf
def tiled(table: Float[Tensor, "1 n d"], unit: Sequence[int], grid: Sequence[int]) -> Float[Tensor, "1 m d"]:
    """Repeat the embeddings of a mask unit over a map."""
    repeats = [extent // side for extent, side in zip(grid, unit, strict=True)]
    return table.unflatten(1, tuple(unit)).repeat(1, *repeats, 1).flatten(1, 2)
