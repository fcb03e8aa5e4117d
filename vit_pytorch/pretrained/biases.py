"""Fitting a checkpoint's biases of attention to a model whose windows or maps have other extents."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

from torch import Tensor, nn

from vit_pytorch.layers.offsets import resize_distances, stretch_offsets
from vit_pytorch.layers.relative import DistanceBias, RelativeBias


def fit_biases(
    model: nn.Module,
    state: dict[str, Tensor],
    *,
    grid: Sequence[int] | None = None,
    same_grid: bool = False,
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Bring a state dict's tables of biases to what a model takes; changes the state dict.

    Args:
        model: what will take the weights.
        state: tensors by our names.
        grid: for biases by offset, the cells of a window that they belong to; for biases by distance, the
            cells of the first map, which is halved from stage to stage. Inferred from the tables' sizes
            unless told.
        same_grid: whether a table of the model's size has the model's extents for certain.

    Returns:
        For each table that was resized, its window or grid and the model's.

    Raises:
        ValueError: where the extents cannot be told.
    """
    resized = {}
    for name, module in model.named_modules():
        key = f"{name}.table"
        if key not in state:
            continue
        if isinstance(module, RelativeBias):
            own = module.window
            old = _window(state[key], own, grid, same_grid)
            state[key] = stretch_offsets(state[key].flatten(0, -2), old, own)
        elif isinstance(module, DistanceBias) and state[key].ndim == 2:
            own, cells = module.grid, state[key].shape[1]
            old = own if same_grid and cells == prod(own) else _grid_of(cells, own, grid)
            state[key] = resize_distances(state[key], old, own)
        else:
            continue
        if old != own:
            resized[key] = (old, own)
    return resized


def _window(
    table: Tensor, wanted: tuple[int, ...], grid: Sequence[int] | None, same_grid: bool
) -> tuple[int, ...]:
    """Tell the window that a table over its offsets belongs to."""
    if table.ndim > 2:
        return tuple((side + 1) // 2 for side in table.shape[:-1])
    if grid is not None:
        return tuple(grid)
    rows = table.shape[0]
    side = isqrt(rows)
    square = side % 2 == 1 and side**2 == rows
    own = rows == prod(2 * extent - 1 for extent in wanted)
    extents = ((side + 1) // 2,) * 2
    if own and square and not same_grid and extents != wanted:
        raise ValueError(
            f"{rows} offsets may belong to a window of {wanted} or of {extents}; pass the checkpoint's"
        )
    if own:
        return wanted
    if square and len(wanted) == 2:
        return extents
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
    if prod(wanted) == cells and (len(set(wanted)) == 1 or square**2 != cells):
        return wanted
    if prod(wanted) == cells:
        raise ValueError(
            f"{cells} distances may belong to a grid of {wanted} or of {(square, square)}; "
            "pass the checkpoint's grid"
        )
    if square**2 != cells:
        raise ValueError(f"{cells} distances are no square grid; pass the checkpoint's grid")
    return square, square
