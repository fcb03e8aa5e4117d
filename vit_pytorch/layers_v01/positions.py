"""Where a token stands: position embeddings that are added to the tokens, and their resizing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

INTERPOLATION = {1: "linear", 2: "bicubic", 3: "trilinear"}


def resize_table(
    table: Float[Tensor, "b n d"],
    old: Sequence[int],
    new: Sequence[int],
    *,
    antialias: bool = True,
    mode: str | None = None,
) -> Float[Tensor, "b m d"]:
    """Interpolate position embeddings, or other tokens, from one grid to another (ViT, section 3.2).

    Args:
        table: embeddings of the old grid's cells, in row-major order, without prefix tokens.
        old: the grid that the table belongs to.
        new: the grid wanted.
        antialias: low-pass before shrinking (2-D grids), as timm does; transformers does not.
        mode: how cells are interpolated, as PyTorch names it; that of `INTERPOLATION` unless told.

    Raises:
        ValueError: where the table does not have the old grid's number of rows.
    """
    if table.shape[1] != prod(old):
        raise ValueError(f"a grid of {tuple(old)} has {prod(old)} positions, the table {table.shape[1]}")
    if tuple(old) == tuple(new):
        return table
    mode = INTERPOLATION[len(old)] if mode is None else mode
    cells = table.float().transpose(1, 2).unflatten(2, tuple(old))
    cells = F.interpolate(cells, tuple(new), mode=mode, antialias=antialias and len(old) == 2)
    return cells.flatten(2).transpose(1, 2).to(table.dtype)


def sincos_table(
    grid: Sequence[int], dim: int, *, temperature: float = 10_000.0, endpoint: bool = True
) -> Float[Tensor, "1 n d"]:
    """Compute fixed sine and cosine embeddings of the cells of a grid of one to three axes.

    Per cell, for each axis from the last to the first: sin(x w), cos(x w), with the frequencies w falling
    geometrically from 1 to 1 / temperature (Beyer et al. 2022, arXiv:2205.01580, for two axes). Channels that
    three axes cannot share out evenly stay zero.

    Args:
        grid: cells along each axis.
        dim: width of a token, a multiple of 2 for one axis and of 4 for two.
        temperature: the inverse of the lowest frequency.
        endpoint: whether the lowest frequency is among them; otherwise they stop one step before it, as in
            Vaswani et al. 2017 and He et al. 2021 (arXiv:2111.06377).

    Raises:
        ValueError: where there are more axes, or `dim` has no place for two frequencies of each.
    """
    rank = len(grid)
    if not 1 <= rank <= 3:
        raise ValueError(f"sin-cos positions need a grid of 1 to 3 axes, got {tuple(grid)}")
    step = 2 if rank == 3 else 2 * rank
    if dim % step or dim < 4 * rank:
        raise ValueError(
            f"{rank}-D sin-cos positions need a width that is a multiple of {step} from {4 * rank} on, "
            f"got {dim}"
        )
    places = torch.meshgrid(*(torch.arange(g, dtype=torch.float64) for g in grid), indexing="ij")
    count = dim // (2 * rank)
    frequency = temperature ** (
        -torch.arange(count, dtype=torch.float64) / (count - 1 if endpoint else count)
    )
    angles = [axis.flatten()[:, None] * frequency for axis in reversed(places)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, dim - table.shape[1]))[None].float()


class Positions(nn.Module):
    """A table of embeddings: a row for each prefix token that has a place, then one for each cell of a grid.

    Args:
        grid: cells along each axis, of the largest input.
        prefix: rows in front for prefix tokens (the class token's, as a rule).

    Attributes:
        interpolates: whether a smaller grid is one of larger cells, instead of a part of the largest grid.
    """

    table: Tensor

    def __init__(self, grid: Sequence[int], *, prefix: int = 0) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.prefix = prefix
        self.interpolates = False

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Give the embeddings of a grid's cells: those of the same places in the largest grid.

        Where `interpolates` is set, a smaller grid covers the whole picture, and the table is interpolated.
        """
        table = self.table[:, self.prefix :]
        return (
            resize_table(table, self.grid, grid) if self.interpolates else crop_table(table, self.grid, grid)
        )

    def for_prefix(self, tokens: int) -> Float[Tensor, "1 k d"]:
        """Give what is added to the prefix tokens; zero for those without a place."""
        return F.pad(self.table[:, : self.prefix], (0, 0, 0, tokens - self.prefix))


class LearnedPositions(Positions):
    """A learned embedding for every cell of a grid, and for the prefix tokens that have a place.

    Args:
        grid: cells along each axis, of the largest input.
        dim: width of a token.
        prefix: rows in front for prefix tokens.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, prefix: int = 0) -> None:
        super().__init__(grid, prefix=prefix)
        self.table = nn.Parameter(torch.empty(1, prefix + prod(grid), dim))
        nn.init.trunc_normal_(self.table, std=0.02)


class Learned2DPositions(Positions):
    """A learned embedding of the column and one of the row, half of the width each (ViT, appendix D.4).

    Args:
        grid: cells along each of two axes, of the largest input.
        dim: width of a token, a multiple of 2.
        prefix: rows in front for prefix tokens, which are learned whole.

    Raises:
        ValueError: where the width is odd, or the grid is not 2-D.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, prefix: int = 0) -> None:
        super().__init__(grid, prefix=prefix)
        if dim % 2 or len(grid) != 2:
            raise ValueError(
                f"learned 2-D positions need an even width and a 2-D grid, got {dim} and {tuple(grid)}"
            )
        self.rows = nn.Parameter(torch.empty(1, grid[0], dim // 2))
        self.columns = nn.Parameter(torch.empty(1, grid[1], dim // 2))
        self.first = nn.Parameter(torch.empty(1, prefix, dim)) if prefix else None
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    @property
    def table(self) -> Float[Tensor, "1 n d"]:  # type: ignore[override]
        """The embeddings of prefix tokens and of the cells of the largest grid."""
        rows, columns = self.grid
        x = self.columns.unsqueeze(1).expand(-1, rows, -1, -1)
        y = self.rows.unsqueeze(2).expand(-1, -1, columns, -1)
        cells = torch.cat([x, y], dim=-1).flatten(1, 2)
        return cells if self.first is None else torch.cat([self.first, cells], dim=1)


class SinCosPositions(Positions):
    """Fixed sine and cosine embeddings of a grid of one to three axes (see `sincos_table`).

    Args:
        grid: cells along each axis, of the largest input.
        dim: width of a token, a multiple of 4 for two axes.
        prefix: rows in front for prefix tokens.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, prefix: int = 0) -> None:
        super().__init__(grid, prefix=prefix)
        self.register_buffer("table", self.compute(grid, dim), persistent=False)

    def compute(self, grid: Sequence[int], dim: int) -> Float[Tensor, "1 n d"]:
        """Compute the table of a grid, the rows of prefix tokens, which are zero, in front."""
        return F.pad(sincos_table(grid, dim), (0, 0, self.prefix, 0))


class SequencePositions(SinCosPositions):
    """Fixed embeddings of places in the sequence, prefix tokens first (Vaswani et al. 2017, section 3.5).

    Sines and cosines of the place alternate, with frequencies that fall geometrically from 1 to nearly
    1 / 10,000. A smaller grid has the places that its cells have in the largest one.
    """

    def compute(self, grid: Sequence[int], dim: int) -> Float[Tensor, "1 n d"]:
        """Compute the table: the rows of prefix tokens, then the cells in row-major order."""
        places = torch.arange(self.prefix + prod(grid), dtype=torch.float64)
        channel = torch.arange(dim)
        angles = places[:, None] * 10_000 ** -((channel - channel % 2).double() / dim)
        return torch.where(channel % 2 == 0, angles.sin(), angles.cos())[None].float()


class FactorisedPositions(Positions):
    """The sum of a learned embedding of the row and one of the column (NaViT, arXiv:2307.06304, section 2.1).

    Args:
        grid: cells along each axis that the two tables have.
        dim: width of a token.
        kind: "abs" takes the table's entries one by one; "frac" interpolates it along each side of the
            grid asked for; "aspect" interpolates both along the longer side.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, kind: str = "abs") -> None:
        super().__init__(grid)
        self.kind = kind
        self.rows = nn.Parameter(torch.empty(1, grid[0], dim))
        self.columns = nn.Parameter(torch.empty(1, grid[1], dim))
        for table in (self.rows, self.columns):
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Give the embeddings of a grid's cells."""
        extents = (max(grid), max(grid)) if self.kind == "aspect" else tuple(grid)
        rows: Tensor = self.rows
        columns: Tensor = self.columns
        if self.kind != "abs":
            rows, columns = _stretch(rows, extents[0]), _stretch(columns, extents[1])
        rows, columns = rows[:, : grid[0]], columns[:, : grid[1]]
        return (rows.unsqueeze(2) + columns.unsqueeze(1)).flatten(1, 2)


@contextmanager
def interpolated_positions(model: nn.Module) -> Iterator[None]:
    """Let smaller inputs be whole pictures at a lower resolution, meanwhile: positions are interpolated."""
    changed = [part for part in model.modules() if isinstance(part, Positions) and not part.interpolates]
    for part in changed:
        part.interpolates = True
    try:
        yield
    finally:
        for part in changed:
            part.interpolates = False


def _stretch(table: Float[Tensor, "1 n d"], extent: int) -> Float[Tensor, "1 m d"]:
    """Interpolate a table of one axis to another extent."""
    if extent == table.shape[1]:
        return table
    stretched = F.interpolate(table.float().transpose(1, 2), extent, mode="linear", align_corners=False)
    return stretched.transpose(1, 2).to(table.dtype)


def crop_table(
    table: Float[Tensor, "1 n d"], old: Sequence[int], new: Sequence[int]
) -> Float[Tensor, "1 m d"]:
    """Take the rows of the cells that a smaller grid shares with a larger one, from the origin on."""
    if tuple(old) == tuple(new):
        return table
    cells = table.unflatten(1, tuple(old))
    for axis, extent in enumerate(new):
        cells = cells.narrow(1 + axis, 0, extent)
    return cells.flatten(1, -2)
