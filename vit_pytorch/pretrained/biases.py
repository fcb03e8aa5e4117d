"""Fitting a checkpoint's biases of attention to a model whose windows or maps have other extents."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

from torch import Tensor, nn

from vit_pytorch.layers.offsets import resize_axis, resize_distances, stretch_offsets
from vit_pytorch.layers.positions import DecomposedPositions
from vit_pytorch.layers.relative import DistanceBias, RelativeBias
from vit_pytorch.pretrained.extents import Extents, ask_for, is_certain


def fit_biases(
    model: nn.Module,
    state: dict[str, Tensor],
    *,
    grid: Sequence[int] | None = None,
    extents: Extents | None = None,
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Bring a state dict's tables of biases to what a model takes; changes the state dict.

    Args:
        model: what will take the weights.
        state: tensors by our names.
        grid: for biases by offset, the cells of a window that they belong to; for biases by distance, the
            cells of the first map, which is halved from stage to stage. Default those of the configuration,
            or squares.
        extents: what the configuration says.

    Returns:
        For each table that was resized, its window or grid and the model's.

    Raises:
        ValueError: where the extents cannot be told.
    """
    resized = {}
    tables = {} if extents is None else extents.tables
    for name, module in model.named_modules():
        axes = [f"{name}.rows", f"{name}.columns"]
        if isinstance(module, DecomposedPositions) and all(
            axis in state and state[axis].ndim == 2 for axis in axes
        ):
            old = tuple((len(state[axis]) + 1) // 2 for axis in axes)
            if old != module.window:
                for axis, extent in zip(axes, module.window, strict=True):
                    state[axis] = resize_axis(state[axis], extent)
                resized[name] = (old, module.window)
        key = f"{name}.table"
        if key not in state:
            continue
        if isinstance(module, RelativeBias):
            own = module.window
            old = _window(state[key], own, grid, tables.get(key))
            state[key] = stretch_offsets(state[key].flatten(0, -2), old, own)
        elif isinstance(module, DistanceBias) and state[key].ndim == 2:
            own, cells = module.grid, state[key].shape[1]
            named = tables.get(key) if grid is None else None
            old = named if named is not None and prod(named) == cells else _grid_of(cells, own, grid)
            state[key] = resize_distances(state[key], old, own)
        else:
            continue
        if old != own:
            resized[key] = (old, own)
    return resized


def _window(
    table: Tensor, wanted: tuple[int, ...], grid: Sequence[int] | None, named: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Tell the window that a table over its offsets belongs to."""
    if table.ndim > 2:
        return tuple((side + 1) // 2 for side in table.shape[:-1])
    rows = table.shape[0]
    if grid is not None:
        return tuple(grid)
    if named is not None and rows == prod(2 * extent - 1 for extent in named):
        return named
    side = isqrt(rows)
    square = side % 2 == 1 and side**2 == rows
    own = rows == prod(2 * extent - 1 for extent in wanted)
    if own and not is_certain(wanted):
        raise ask_for("offsets", rows, wanted, shape="window")
    if own:
        return wanted
    if square and len(wanted) == 2:
        return ((side + 1) // 2,) * 2
    raise ValueError(f"{rows} offsets belong to no square window; pass the checkpoint's as the grid")


def _grid_of(cells: int, wanted: tuple[int, ...], told: Sequence[int] | None) -> tuple[int, ...]:
    """Tell the grid of so many cells: what is told, halved a few times, or the model's, or a square."""
    if told is not None:
        grid = tuple(told)
        while prod(grid) > max(cells, 1):
            grid = tuple(-(-extent // 2) for extent in grid)
        if prod(grid) != cells:
            raise ValueError(
                f"no halving of a grid of {tuple(told)} has {cells} cells, as the checkpoint has"
            )
        return grid
    square = isqrt(cells)
    if prod(wanted) == cells:
        if not is_certain(wanted):
            raise ask_for("distances", cells, wanted)
        return wanted
    if square**2 != cells:
        raise ValueError(f"{cells} distances are no square grid; pass the checkpoint's grid")
    return square, square
