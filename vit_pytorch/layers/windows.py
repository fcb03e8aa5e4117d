"""Who sees whom on a map: windows, grids, dilated groups and axes, all one kind of partition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, CrossAttention
from vit_pytorch.layers.blocks import fx_leaf
from vit_pytorch.layers.conv import OnMap

# Added to the scores of cells that were not neighbours before a map was shifted, as in Swin's code.
HIDDEN = -100.0


@dataclass(frozen=True)
class Partition:
    """A way to part the cells of a map into groups of equal size.

    Along each axis a group takes `size` cells, `interval` cells apart. Interval 1 gives windows of
    neighbours; an interval as wide as the map allows gives a grid spread over all of it; a size as wide as
    the map and 1 along the other axes gives rows and columns.

    Args:
        size: cells of a group along each axis; None for as many as the interval allows.
        interval: distance of a group's neighbouring cells along each axis; None for the widest.

    Raises:
        ValueError: where an axis has neither a size nor an interval, or one is below 1.
    """

    size: tuple[int | None, ...]
    interval: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if len(self.size) != len(self.interval):
            raise ValueError(f"size {self.size} and interval {self.interval} differ in rank")
        for size, interval in zip(self.size, self.interval, strict=True):
            if (size is None and interval is None) or min(size or 1, interval or 1) < 1:
                raise ValueError(f"each axis needs a size or an interval from 1 on, got {size}, {interval}")

    @property
    def multiple(self) -> tuple[int, ...]:
        """What the extents of a map are multiples of."""
        return tuple((s or 1) * (i or 1) for s, i in zip(self.size, self.interval, strict=True))

    def layout(self, grid: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return (regions, cells of a group, interval) along each axis of a map.

        Raises:
            ValueError: where the groups do not divide the map.
        """
        if any(extent < 1 or extent % multiple for extent, multiple in zip(grid, self.multiple, strict=True)):
            raise ValueError(f"a map of {tuple(grid)} cells is not a multiple of {self.multiple}")
        axes = []
        for extent, size, interval in zip(grid, self.size, self.interval, strict=True):
            cells = size or extent // (interval or 1)
            step = interval or extent // cells
            axes.append((extent // (cells * step), cells, step))
        return axes

    @fx_leaf
    def cells(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Return the cells of a group along each axis of a map."""
        return tuple(cells for _, cells, _ in self.layout(grid))

    @fx_leaf
    def split(self, x: Shaped[Tensor, "b *grid d"]) -> Shaped[Tensor, "g n d"]:
        """Gather the groups of every sample, those of the first sample first, in row-major order."""
        layout = self.layout(x.shape[1:-1])
        axes = range(len(layout))
        x = x.reshape(x.shape[0], *chain(*layout), x.shape[-1])
        outer = chain(*((1 + 3 * axis, 3 + 3 * axis) for axis in axes))
        x = x.permute(0, *outer, *(2 + 3 * axis for axis in axes), -1)
        return x.reshape(-1, prod([cells for _, cells, _ in layout]), x.shape[-1])

    @fx_leaf
    def merge(self, groups: Float[Tensor, "g n d"], grid: Sequence[int]) -> Float[Tensor, "b *grid d"]:
        """Put the groups back in their places on a map; the inverse of `split`."""
        layout = self.layout(grid)
        rank = len(layout)
        outer = chain(*((regions, step) for regions, _, step in layout))
        x = groups.reshape(-1, *outer, *(cells for _, cells, _ in layout), groups.shape[-1])
        inner = range(1 + 2 * rank, 1 + 3 * rank)
        x = x.permute(0, *chain(*((1 + 2 * i, inner[i], 2 + 2 * i) for i in range(rank))), -1)
        return x.reshape(-1, *grid, groups.shape[-1])


def windows(size: Sequence[int]) -> Partition:
    """Part a map into windows of neighbouring cells (Swin, arXiv:2103.14030, section 3.2)."""
    return Partition(tuple(size), (1,) * len(size))


def grid_groups(size: Sequence[int]) -> Partition:
    """Part a map into groups of so many cells, spread evenly over it (MaxViT, arXiv:2204.01697, 3.2)."""
    return Partition(tuple(size), (None,) * len(size))


def dilated(size: Sequence[int], interval: Sequence[int]) -> Partition:
    """Part a map into groups of cells at intervals (CrossFormer, arXiv:2108.00154, section 3.2)."""
    return Partition(tuple(size), tuple(interval))


def lines(axis: int, rank: int = 2) -> Partition:
    """Part a map into the lines along one axis, 0 for columns and 1 for rows of an image."""
    return Partition(tuple(None if i == axis else 1 for i in range(rank)), (1,) * rank)


# all cells of a map, one group
WHOLE = Partition((None, None), (1, 1))


@fx_leaf
def pad_map(x: Float[Tensor, "b h w d"], multiple: Sequence[int]) -> Float[Tensor, "b y x d"]:
    """Add cells of zeros below and on the right until the map is a multiple."""
    below, right = (-extent % m for extent, m in zip(x.shape[1:3], multiple, strict=True))
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


@fx_leaf
def real_cells(grid: Sequence[int], padded: Sequence[int], like: Tensor) -> Bool[Tensor, "1 y x 1"]:
    """Tell which cells of a padded map are not padding."""
    real = like.new_ones((1, *grid, 1))
    return pad_map(real, padded).bool()


class GroupAttention(nn.Module):
    """Attention within the groups of a partition.

    Args:
        attention: projects, attends and merges.
        partition: which cells see each other.
        bias: gives what is added to the scores of a group; None for nothing.
        mask_padding: whether the cells that fill the map up to whole groups are hidden, rather than seen as
            zeros.
    """

    def __init__(
        self,
        attention: Attention,
        partition: Partition,
        bias: Callable[[], Tensor] | None = None,
        *,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.partition = partition
        self.bias = bias
        self.mask_padding = mask_padding

    def partition_for(self, grid: tuple[int, int]) -> tuple[Partition, Tensor | None]:
        """Return the partition of a map of this size, and what is added to the scores of its groups."""
        return self.partition, None if self.bias is None else self.bias()[None]

    def group_mask(
        self, partition: Partition, grid: Sequence[int], padded: Float[Tensor, "b y x d"], bias: Tensor | None
    ) -> Tensor | None:
        """Return the mask of all groups of a batch; see `hide_padding` for the arguments."""
        return mask_padding(partition, grid, padded, bias) if self.mask_padding else bias

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w e"]:
        """Attend from each cell to the cells of its group."""
        height, width = x.shape[1:3]
        partition, mask = self.partition_for((height, width))
        padded = pad_map(x, partition.multiple)
        mask = self.group_mask(partition, (height, width), padded, mask)
        q, k, v = self.attention.project(partition.split(padded))
        mixed = self.attention.merge(self.attention.kernel(q, k, v, mask))
        return crop_map(partition.merge(mixed, padded.shape[1:3]), (height, width))


class SubsampledAttention(nn.Module):
    """Global sub-sampled attention: from each cell to a summary of the whole map.

    PVT, arXiv:2102.12122, section 3.3; Twins, arXiv:2104.13840, section 3.2, equation 3.

    Args:
        attention: attends from the cells to the summary.
        summary: returns a smaller map; the identity for the map as it is.
    """

    def __init__(self, attention: CrossAttention, summary: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.summary = summary

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to the summary of its map."""
        height, width = x.shape[1:3]
        summary = self.summary(x).flatten(1, 2)
        return self.attention(x.flatten(1, 2), summary).unflatten(1, (height, width))


def convolved_summary(dim: int, side: int) -> nn.Sequential:
    """Build a convolution whose stride is its kernel, and a norm: the summary of a map.

    Args:
        side: side of the squares of cells that are summarised in one. Cells beyond the last whole square are
            in no summary; with a side of 1 the map is its own summary.
    """
    layers = [OnMap(nn.Conv2d(dim, dim, side, side)), nn.LayerNorm(dim)]
    return nn.Sequential(*(layers if side > 1 else []))


@fx_leaf
def crop_map(x: Float[Tensor, "b y x d"], size: Sequence[int]) -> Float[Tensor, "b h w d"]:
    """Take the cells above and on the left; the inverse of `pad_map`."""
    return x[:, : size[0], : size[1]]


@fx_leaf
def mask_padding(
    partition: Partition, grid: Sequence[int], padded: Float[Tensor, "b y x d"], bias: Tensor | None
) -> Tensor | None:
    """Return the mask of all groups of a batch: the bias, and without the cells that fill maps up, if any."""
    if tuple(padded.shape[1:3]) == tuple(grid):
        return bias
    return hide_padding(partition, grid, padded, bias)


@fx_leaf
def hide_padding(
    partition: Partition,
    grid: Sequence[int],
    padded: Float[Tensor, "b y x d"],
    bias: Float[Tensor, "*_ h n n"] | None = None,
) -> Tensor:
    """Return the mask of all groups of a batch that hides what fills the maps up; see `hide`.

    Args:
        partition: how the padded maps are parted.
        grid: rows and columns of a map without padding.
        padded: the maps.
        bias: what is added to the scores of all groups, if anything.
    """
    real = partition.split(real_cells(grid, padded.shape[1:3], padded))
    return hide(real[..., 0], bias).repeat(padded.shape[0], 1, 1, 1)


def hide(real: Bool[Tensor, "g n"], bias: Float[Tensor, "*_ h n n"] | None) -> Tensor:
    """Return the mask of groups that hides padded keys; a group of nothing else sees them all.

    Args:
        real: which cells of every group are not padding.
        bias: what is added to the scores of all groups, if anything.
    """
    keys = (real | ~real.any(dim=-1, keepdim=True))[:, None, None]
    return keys if bias is None else bias.masked_fill(~keys, -float("inf"))


class ShiftedWindowAttention(GroupAttention):
    """Attention within windows of a map that is shifted cyclically (Swin, arXiv:2103.14030, figure 4).

    Cells that meet in a window only because the map was shifted do not see each other.

    Args:
        window: rows and columns of the windows.
        shift: rows and columns that the map is shifted by, upwards and to the left.
        bias: returns what is added to the scores of a window.
    """

    def __init__(
        self,
        attention: Attention,
        window: tuple[int, int],
        shift: tuple[int, int],
        bias: Callable[[], Tensor],
    ) -> None:
        super().__init__(attention, windows(window), bias, mask_padding=False)
        self.shift = shift

    def group_mask(
        self, partition: Partition, grid: Sequence[int], padded: Float[Tensor, "b y x d"], bias: Tensor | None
    ) -> Tensor | None:
        """Return the mask of all windows of a batch: the bias, and what a shift hides."""
        assert bias is not None
        return shift_mask(partition, padded, self.shift, bias) if any(self.shift) else bias

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Shift the map, attend from each cell to those of its window, shift the map back."""
        if not any(self.shift):
            return super().forward(x, inputs)
        up, left = self.shift
        return super().forward(x.roll((-up, -left), (1, 2)), inputs).roll((up, left), (1, 2))


@fx_leaf
def shift_mask(
    partition: Partition,
    padded: Float[Tensor, "b y x d"],
    shift: tuple[int, int],
    bias: Float[Tensor, "1 h n n"],
) -> Float[Tensor, "g h n n"]:
    """Return the bias of all windows of a batch, with cells hidden that were not neighbours before the shift.

    Args:
        partition: the windows.
        padded: the shifted maps.
        shift: rows and columns that the maps were shifted by.
        bias: what is added to the scores of all windows.
    """
    batch, height, width = padded.shape[:3]
    rows = torch.arange(height, device=padded.device) >= height - shift[0]
    columns = torch.arange(width, device=padded.device) >= width - shift[1]
    sides = partition.split((2 * rows[:, None] + columns)[None, :, :, None])[..., 0]
    apart = sides[:, :, None] != sides[:, None, :]
    return (bias + HIDDEN * apart[:, None].to(bias.dtype)).repeat(batch, 1, 1, 1)


def merge_cells(x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
    """Concatenate the channels of 2 x 2 cells, the lower of a column after the upper, columns in order."""
    x = pad_map(x, (2, 2)).unflatten(1, (-1, 2)).unflatten(3, (-1, 2))
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 cells, and reduce their channels by a linear layer (Swin, arXiv:2103.14030, 3.1).

    Args:
        norm: builds the norm before the linear layer.
    """

    def __init__(self, dim: int, out_dim: int, *, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Halve the map; one of odd height or width is padded by zeros."""
        return self.reduction(self.norm(merge_cells(x)))
