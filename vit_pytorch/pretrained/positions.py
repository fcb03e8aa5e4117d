"""Fitting a checkpoint's position embeddings to a model: prefix rows, other grids, fixed tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_pytorch.layers.patches import PrefixTokens
from vit_pytorch.layers.positions import (
    TABLES,
    FactorisedPositions,
    Learned2DPositions,
    LearnedPositions,
    SinCosPositions,
    resize_table,
)
from vit_pytorch.pretrained.extents import Extents, ask_for, is_certain

TOLERANCE = 1e-4


def fit_positions(
    model: nn.Module,
    state: dict[str, Tensor],
    *,
    grid: Sequence[int] | None = None,
    antialias: bool = True,
    extents: Extents | None = None,
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Bring the position embeddings of a state dict to what a model takes; changes the state dict.

    Rows of prefix tokens for which the model has no place are added to the tokens themselves, which
    computes the same. A table that the model computes itself is held against it and taken out.

    Args:
        model: what will take the weights.
        state: tensors by our names.
        grid: the grid that the table belongs to; default that of the configuration, or a square.
        antialias: low-pass before shrinking (see `resize_table`).
        extents: what the configuration says.

    Returns:
        For each table that was resized, its grid and the model's.

    Raises:
        ValueError: where the grid cannot be told, or fixed embeddings are not the model's.
    """
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    first: tuple[int, ...] | None = None
    for name, module in model.named_modules():
        if isinstance(module, (Learned2DPositions, FactorisedPositions)):
            resized |= _stretch_axes(name, module, state)
            continue
        key = f"{name}.table"
        if key not in state or not isinstance(module, (LearnedPositions, SinCosPositions)):
            continue
        table = state[key]
        if table.ndim != 3:
            continue
        first = first or module.grid
        # What is told belongs to the first table; those of later stages have parts of its extents.
        told = grid and [g // max(f // own, 1) for g, f, own in zip(grid, first, module.grid, strict=True)]
        tokens = _prefix_tokens(model, state, dim=table.shape[2])
        count = sum(state[token].shape[1] for token in tokens)
        prefix, old = _split(table, module, count, told, key, extents or Extents())
        rows = _fold(state, tokens, table[:, :prefix], keep=module.prefix)
        cells = table[:, prefix:]
        if isinstance(module, SinCosPositions):
            _check_fixed(key, torch.cat([rows, cells], dim=1), module.compute(old, table.shape[2]))
            del state[key]
            continue
        if old != module.grid:
            resized[key] = (old, module.grid)
        state[key] = torch.cat(
            [rows, module.resized_cells(cells, old, module.grid, antialias=antialias)], dim=1
        )
    return resized


def _stretch_axes(
    name: str, module: Learned2DPositions | FactorisedPositions, state: dict[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Interpolate the embeddings of rows and of columns, each along its axis; changes the state dict."""
    axes = [f"{name}.{axis}" for axis in TABLES[-len(module.grid) :]]
    if any(axis not in state for axis in axes):
        return {}
    old = tuple(state[axis].shape[1] for axis in axes)
    for axis, extent, wanted in zip(axes, old, module.grid, strict=True):
        state[axis] = resize_table(state[axis], (extent,), (wanted,))
    return {} if old == module.grid else {f"{name}.table": (old, module.grid)}


def _prefix_tokens(model: nn.Module, state: dict[str, Tensor], *, dim: int) -> list[str]:
    """Name the prefix tokens of a width that a state dict brings, in their order."""
    names = [name for name, module in model.named_modules() if isinstance(module, PrefixTokens)]
    kinds = ("class_token", "distillation_token", "registers")
    tokens = [f"{name}.{kind}" for name in names for kind in kinds]
    return [token for token in tokens if token in state and state[token].shape[2:] == (dim,)]


def _split(
    table: Tensor,
    module: LearnedPositions | SinCosPositions,
    tokens: int,
    grid: Sequence[int] | None,
    key: str,
    extents: Extents,
) -> tuple[int, tuple[int, ...]]:
    """Tell how many rows belong to prefix tokens, and the grid of the rest."""
    rows = table.shape[1]
    prefixes = [n for n in dict.fromkeys((module.prefix, tokens, 1, 0)) if n <= min(tokens, rows)]
    wanted = module.grid if grid is None else tuple(grid)
    for prefix in prefixes:
        named = extents.grid(key, rows - prefix) if grid is None else None
        if named is not None and rows - prefix == prod(named) and len(named) == len(wanted):
            return prefix, named
    for prefix in prefixes:
        if rows - prefix == prod(wanted):
            # A fixed table is compared with that of the grid.
            if grid is None and not is_certain(wanted) and isinstance(module, LearnedPositions):
                raise ask_for("positions", rows - prefix, wanted)
            return prefix, wanted
    for prefix in prefixes:
        guesses = [] if grid is not None or rows == prefix else _guess(rows - prefix, wanted)
        if len(guesses) == 1:
            return prefix, guesses[0]
    if grid is not None:
        raise ValueError(f"a grid of {wanted} has {prod(wanted)} positions, the checkpoint's table {rows}")
    raise ValueError(
        f"{rows} positions with {tokens} prefix tokens are no square grid; pass the checkpoint's grid"
    )


def _guess(cells: int, wanted: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the grids that so many cells may have: a line, a square, or a video with one of the model's
    sizes.

    Those of a video are the model's frames of another, square size, and more or fewer frames of its size.
    """
    if len(wanted) == 1:
        return [(cells,)]
    side = isqrt(cells // wanted[0] if len(wanted) == 3 else cells)
    square = (*wanted[:-2], side, side)
    longer = (cells // prod(wanted[1:]), *wanted[1:])
    guesses = [square, longer] if len(wanted) == 3 else [square]
    return list(dict.fromkeys(grid for grid in guesses if prod(grid) == cells))


def _fold(state: dict[str, Tensor], tokens: list[str], rows: Tensor, *, keep: int) -> Tensor:
    """Return the rows that stay in the table; add the others to their tokens."""
    if rows.shape[1] > keep:
        counts = [state[token].shape[1] for token in tokens]
        moved = torch.cat([torch.zeros_like(rows[:, :keep]), rows[:, keep:]], dim=1)
        moved = F.pad(moved, (0, 0, 0, sum(counts) - rows.shape[1]))
        for token, part in zip(tokens, moved.split(counts, dim=1), strict=True):
            state[token] = state[token] + part
    return F.pad(rows[:, :keep], (0, 0, 0, max(keep - rows.shape[1], 0)))


def _check_fixed(key: str, table: Tensor, wanted: Tensor) -> None:
    if table.is_meta:
        return
    difference = (table.float() - wanted).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{key} of the checkpoint is not the model's fixed sine and cosine table: "
            f"entries differ by up to {difference:.3g}, {TOLERANCE:g} is allowed"
        )
