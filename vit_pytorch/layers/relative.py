"""Where two cells stand to each other: biases that are added to the scores of attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def cells(grid: Sequence[int]) -> Int[Tensor, "n r"]:
    """Give the coordinates of a grid's cells in row-major order."""
    axes = torch.meshgrid(*(torch.arange(extent) for extent in grid), indexing="ij")
    return torch.stack(axes, dim=-1).flatten(0, -2)


def offsets(
    queries: Int[Tensor, "n r"], keys: Int[Tensor, "m r"], extents: Sequence[int]
) -> Int[Tensor, "n m"]:
    """Number the offsets query - key between -(extent - 1) and extent - 1 along each axis, row-major."""
    apart = queries[:, None] - keys[None]
    number = torch.zeros_like(apart[..., 0])
    for axis, extent in enumerate(extents):
        number = number * (2 * extent - 1) + apart[..., axis] + extent - 1
    return number


def distances(
    queries: Int[Tensor, "n r"], keys: Int[Tensor, "m r"], extents: Sequence[int]
) -> Int[Tensor, "n m"]:
    """Number the absolute offsets |query - key| between 0 and extent - 1 along each axis, row-major."""
    apart = (queries[:, None] - keys[None]).abs()
    number = torch.zeros_like(apart[..., 0])
    for axis, extent in enumerate(extents):
        number = number * extent + apart[..., axis]
    return number


def resize_offsets(
    table: Float[Tensor, "k h"], old: Sequence[int], new: Sequence[int]
) -> Float[Tensor, "l h"]:
    """Interpolate a table over the offsets of one window to those of another, bicubically.

    Args:
        table: a row for each offset, as `offsets` numbers them, a column for each head.
        old: extents of the window that the table belongs to.
        new: extents of the window wanted.

    Raises:
        ValueError: where the table does not have a row for each offset of the old window.
    """
    sides, wanted = ([2 * extent - 1 for extent in window] for window in (old, new))
    if table.shape[0] != prod(sides):
        raise ValueError(f"a window of {tuple(old)} has {prod(sides)} offsets, the table {table.shape[0]}")
    if tuple(old) == tuple(new):
        return table
    maps = table.float().T.unflatten(1, sides)[None]
    maps = F.interpolate(maps, wanted, mode="bicubic", align_corners=False)
    return maps[0].flatten(1).T.to(table.dtype)


def resize_distances(
    table: Float[Tensor, "h n"], old: Sequence[int], new: Sequence[int]
) -> Float[Tensor, "h m"]:
    """Interpolate a table over the absolute offsets of one grid to those of another, bicubically.

    The table goes on beyond offset 0 as its mirror image, as the bias that it stands for does.

    Args:
        table: a column for each absolute offset, as `distances` numbers them, a row for each head.
        old: extents of the grid that the table belongs to.
        new: extents of the grid wanted.

    Raises:
        ValueError: where the table does not have a column for each absolute offset of the old grid.
    """
    if table.shape[1] != prod(old):
        raise ValueError(f"a grid of {tuple(old)} has {prod(old)} distances, the table {table.shape[1]}")
    if tuple(old) == tuple(new):
        return table
    maps = table.T.unflatten(0, tuple(old))
    for axis in range(len(old)):
        maps = torch.cat([maps.flip(axis).narrow(axis, 0, old[axis] - 1), maps], dim=axis)
    resized = resize_offsets(maps.flatten(0, -2), old, new)
    resized = resized.unflatten(0, [2 * extent - 1 for extent in new])
    for axis, extent in enumerate(new):
        resized = resized.narrow(axis, extent - 1, extent)
    return resized.flatten(0, -2).T.contiguous()


class CachedBias(nn.Module):
    """A bias that depends on parameters alone, and is computed once in inference.

    What was computed serves as long as the parameters hold the same values, which are compared: they are
    small, and no write to them can be missed. On other devices than the processor, where the comparison
    would wait for the device, and in graphs that are traced, the bias is computed anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[list[Tensor], Tensor] | None = None

    @abstractmethod
    def compute(self) -> Float[Tensor, "h n m"]:
        """Compute the bias from the parameters."""

    def forward(self) -> Float[Tensor, "h n m"]:
        """Give the bias of every head for every pair of cells."""
        parameters = list(self.parameters())
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or any(parameter.device.type != "cpu" for parameter in parameters)
        ):
            return self.compute()
        if self._kept is None or not all(map(_same, self._kept[0], parameters)):
            self._kept = [parameter.clone() for parameter in parameters], self.compute()
        return self._kept[1]

    def __getstate__(self) -> dict[str, object]:
        """Leave what was computed out of copies and files."""
        return {**self.__dict__, "_kept": None}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


class RelativeBias(CachedBias):
    """A learned bias for each head and each offset within a window (Swin, arXiv:2103.14030, equation 4).

    Args:
        window: extents of the window, in cells.
        heads: number of heads.
    """

    index: Tensor

    def __init__(self, window: Sequence[int], heads: int) -> None:
        super().__init__()
        self.window = tuple(window)
        self.table = nn.Parameter(torch.empty(prod(2 * extent - 1 for extent in window), heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        places = cells(window)
        self.register_buffer("index", offsets(places, places, window).flatten(), persistent=False)

    def compute(self) -> Float[Tensor, "h n n"]:
        """Look up the offset of every pair of cells."""
        return _look_up(self.table, self.index, prod(self.window))


class DistanceBias(CachedBias):
    """A learned bias for each head and each absolute offset on a grid (LeViT, arXiv:2104.01136, section 4.2).

    Args:
        grid: cells along each axis, of the largest input.
        heads: number of heads.
        stride: distance of neighbouring queries, in cells; keys are all cells.
    """

    index: Tensor

    def __init__(self, grid: Sequence[int], heads: int, *, stride: int = 1) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.stride = stride
        self.table = nn.Parameter(torch.zeros(heads, prod(grid)))
        queries = cells(self.queries(grid)) * stride
        self.register_buffer("index", distances(queries, cells(grid), grid).flatten()[None], persistent=False)

    def queries(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Give the queries along each axis of a grid."""
        return tuple(-(-extent // self.stride) for extent in grid)

    def compute(self) -> Float[Tensor, "h n m"]:
        """Look up the offset of every query and cell of the largest grid."""
        bias = self.table.gather(1, self.index.expand(len(self.table), -1))
        return bias.unflatten(1, (-1, prod(self.grid)))

    def fit(self, grid: Sequence[int]) -> Float[Tensor, "h n m"]:
        """Give the bias of every head for every query and cell of a grid, which may be a smaller one."""
        bias: Tensor = self()
        if tuple(grid) == self.grid:
            return bias
        (y, x), (height, width) = self.queries(grid), grid
        bias = bias.unflatten(2, self.grid).unflatten(1, self.queries(self.grid))
        return bias[:, :y, :x, :height, :width].flatten(3).flatten(1, 2)


class DynamicBias(CachedBias):
    """A bias for each head that a small network computes from the offset (CrossFormer, arXiv:2108.00154).

    Args:
        window: extents of the window, in cells.
        heads: number of heads.
        dim: width of the network.
        depth: number of hidden layers, each behind a LayerNorm and a ReLU.
    """

    index: Tensor
    places: Tensor

    def __init__(self, window: Sequence[int], heads: int, *, dim: int, depth: int = 2) -> None:
        super().__init__()
        self.window = tuple(window)
        widths = [dim] * (depth + 1)
        self.embed = nn.Linear(len(window), dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(before), nn.ReLU(), nn.Linear(before, after))
            for before, after in pairwise([*widths, heads])
        )
        inside = cells(window)
        every = cells([2 * extent - 1 for extent in window]) - torch.tensor([extent - 1 for extent in window])
        self.register_buffer("places", every, persistent=False)
        self.register_buffer("index", offsets(inside, inside, window).flatten(), persistent=False)

    def compute(self) -> Float[Tensor, "h n n"]:
        """Compute the bias of every offset, then look up that of every pair of cells."""
        x = self.embed(self.places.to(self.embed.weight.dtype))
        for layer in self.layers:
            x = layer(x)
        return _look_up(x, self.index, prod(self.window))


def _look_up(table: Float[Tensor, "k h"], index: Int[Tensor, " p"], cells: int) -> Float[Tensor, "h n n"]:
    """Give each head's row of the table for every pair of cells; a gather is the fastest, and in training."""
    table = table.T.contiguous()
    return table.gather(1, index.expand(len(table), -1)).unflatten(1, (cells, cells))
