"""Offsets of cells on a grid: their numbers, and the resizing of tables that have a row for each."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cells(grid: Sequence[int]) -> Int[Tensor, "n r"]:
    """Return the coordinates of a grid's cells in row-major order."""
    axes = torch.meshgrid(*(torch.arange(extent) for extent in grid), indexing="ij")
    return torch.stack(axes, dim=-1).flatten(0, -2)


def crop_cells(x: Tensor, grid: Sequence[int], wanted: Sequence[int], *, dim: int) -> Tensor:
    """Take, on the axis of a grid's cells, those that a smaller grid shares with it, from the origin on.

    Args:
        x: values of the cells, in row-major order.
        grid: cells along each axis of the grid.
        wanted: cells along each axis of the smaller one.
        dim: which axis of the tensor the cells are.
    """
    if tuple(grid) == tuple(wanted):
        return x
    x = x.unflatten(dim, tuple(grid))
    for axis, extent in enumerate(wanted):
        x = x.narrow(dim + axis, 0, extent)
    return x.flatten(dim, dim + len(wanted) - 1)


def offsets(
    queries: Int[Tensor, "n r"], keys: Int[Tensor, "m r"], extents: Sequence[int]
) -> Int[Tensor, "n m"]:
    """Number the offsets query - key between -(extent - 1) and extent - 1 along each axis, row-major."""
    zero = torch.tensor([extent - 1 for extent in extents], device=queries.device)
    return _row_major(queries[:, None] - keys[None] + zero, [2 * extent - 1 for extent in extents])


def distances(
    queries: Int[Tensor, "n r"], keys: Int[Tensor, "m r"], extents: Sequence[int]
) -> Int[Tensor, "n m"]:
    """Number the absolute offsets, query from key, between 0 and extent - 1 along each axis, row-major."""
    return _row_major((queries[:, None] - keys[None]).abs(), extents)


def _row_major(places: Int[Tensor, "n m r"], extents: Sequence[int]) -> Int[Tensor, "n m"]:
    number = torch.zeros_like(places[..., 0])
    for place, extent in zip(places.unbind(-1), extents, strict=True):
        number = number * extent + place
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
    _check_table(table, old, sides)
    if tuple(old) == tuple(new):
        return table
    maps = table.float().T.unflatten(1, sides)[None]
    maps = F.interpolate(maps, wanted, mode="bicubic", align_corners=False)
    return maps[0].flatten(1).T.to(table.dtype)


def _check_table(table: Tensor, window: Sequence[int], sides: Sequence[int]) -> None:
    if table.shape[0] != prod(sides):
        raise ValueError(f"a window of {tuple(window)} has {prod(sides)} offsets, the table {table.shape[0]}")


def stretch_offsets(
    table: Float[Tensor, "k h"], old: Sequence[int], new: Sequence[int]
) -> Float[Tensor, "l h"]:
    """Interpolate a table over the offsets of one window to those of another, exactly near offset 0.

    The old offsets are laid out over the new ones, 1 apart around offset 0 and by a constant factor of 1.01
    to 1.5 wider from one to the next, so that the outermost ones meet; between them the table is linear (the
    way of BEiT's program, arXiv:2106.08254, after which timm resizes).

    See `resize_offsets` for the arguments.
    """
    sides = [2 * extent - 1 for extent in old]
    _check_table(table, old, sides)
    if tuple(old) == tuple(new):
        return table
    maps = table.float().unflatten(0, sides)
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        weights = _stretching(before - 1, after - 1).to(maps)
        maps = torch.tensordot(weights, maps, dims=([1], [axis])).movedim(0, axis)
    return maps.flatten(0, -2).to(table.dtype)


def _stretching(old: int, new: int) -> Float[Tensor, "m n"]:
    """Return the weights of offsets up to `old` for each up to `new`, both signs, for `stretch_offsets`."""
    low, factor, high = 1.01, 1.01, 1.5
    while high - low > 1e-6:
        factor = (low + high) / 2
        too_far = sum(factor**step for step in range(old)) > new
        low, high = (low, factor) if too_far else (factor, high)
    steps = factor ** torch.arange(old, dtype=torch.float64)
    outwards = steps.cumsum(0)
    places = torch.cat([-outwards.flip(0), outwards.new_zeros(1), outwards])
    wanted = torch.arange(-new, new + 1, dtype=torch.float64).clamp(places[0], places[-1])
    right = torch.searchsorted(places, wanted)
    left = (right - 1).clamp(min=0)
    gap = (places[right] - places[left]).clamp(min=torch.finfo(torch.float64).tiny)
    share = ((wanted - places[left]) / gap).clamp(max=1.0)
    weights = torch.zeros(len(wanted), len(places), dtype=torch.float64)
    weights.scatter_add_(1, left[:, None], 1 - share[:, None])
    return weights.scatter_add_(1, right[:, None], share[:, None])


def resize_axis(table: Float[Tensor, "k e"], extent: int) -> Float[Tensor, "l e"]:
    """Interpolate a table over the offsets along one axis to those of another extent, linearly."""
    resized = F.interpolate(table.float().T[None], 2 * extent - 1, mode="linear", align_corners=False)
    return resized[0].T.to(table.dtype)


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
