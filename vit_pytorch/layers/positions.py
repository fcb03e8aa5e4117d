"""Position embeddings that are added to tokens, those of offsets that meet queries, and their resizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import pi, prod
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.layers.attention import BlockInputs, Keys, Queries, jit_is_tracing
from vit_pytorch.layers.blocks import fx_leaf, static_size
from vit_pytorch.layers.init import EMBEDDING_STD, init_embeddings, init_xavier
from vit_pytorch.layers.offsets import crop_cells, resize_axis
from vit_pytorch.layers.options import Option

# Waves of each axis of `fourier_table`.
WAVES = 32
INTERPOLATION = {1: "linear", 2: "bicubic", 3: "trilinear"}


class Interpolation(NamedTuple):
    """How a table is stretched over the grid of an input.

    Args:
        mode: as PyTorch names it; that of `INTERPOLATION` unless told.
        antialias: low-pass before the table shrinks.
        align_corners: corner cells of both grids have the same centres, instead of the same outer corners.
        keep_aspect: stretch it over the square of the longer side, of which the input takes a part.
    """

    mode: Literal["bilinear", "bicubic"] | None = None
    antialias: bool = True
    align_corners: bool = False
    keep_aspect: bool = False


# Qwen3-VL's
CORNERS = Interpolation(mode="bilinear", antialias=False, align_corners=True)


def is_same_grid(grid: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two grids are equal; of sizes that stay open in an exported graph, whether always."""
    return all(is_known(a == b) for a, b in zip(grid, other, strict=True))


def covers(grid: Sequence[int], wanted: Sequence[int]) -> bool:
    """Return whether a grid has all cells of another one; of sizes that stay open, whether always."""
    return all(is_known(extent >= other) for extent, other in zip(grid, wanted, strict=True))


def is_known(comparison: bool) -> bool:
    """Return whether a comparison of sizes is true whatever those are that stay open in an exported graph."""
    if not isinstance(comparison, torch.SymBool):
        return comparison
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(comparison)


def resize_table(
    table: Float[Tensor, "b n d"],
    old: Sequence[int],
    new: Sequence[int],
    *,
    antialias: bool = True,
    mode: str | None = None,
    align_corners: bool = False,
) -> Float[Tensor, "b m d"]:
    """Interpolate position embeddings, or other tokens, from one grid to another (ViT, section 3.2).

    Args:
        table: embeddings of the old grid's cells, in row-major order, without prefix tokens.
        old: the grid that the table belongs to.
        new: the grid wanted.
        antialias: low-pass before shrinking (2-D grids), as timm does; transformers does not.
        mode: how cells are interpolated, as PyTorch names it; that of `INTERPOLATION` unless told.
        align_corners: see `Interpolation`.

    Raises:
        ValueError: where the table does not have the old grid's number of rows.
    """
    if table.shape[1] != prod(old):
        raise ValueError(f"a grid of {tuple(old)} has {prod(old)} positions, the table {table.shape[1]}")
    if is_same_grid(new, old):
        return table
    mode = INTERPOLATION[len(old)] if mode is None else mode
    cells = table.float().transpose(1, 2).unflatten(2, tuple(old))
    # PyTorch takes corners for interpolating modes alone
    corners = align_corners if mode.endswith(("linear", "cubic")) else None
    antialias = antialias and len(old) == 2
    cells = F.interpolate(cells, tuple(new), mode=mode, antialias=antialias, align_corners=corners)
    return cells.flatten(2).transpose(1, 2).to(table.dtype)


def sincos_table(
    grid: Sequence[int], dim: int, *, temperature: float = 10_000.0, endpoint: bool = True
) -> Float[Tensor, "1 n d"]:
    """Compute fixed sine and cosine embeddings of the cells of a grid of one to three axes.

    Per cell, for each axis from the last to the first: sin(x w), cos(x w), with the frequencies w falling
    geometrically from 1 to 1 / temperature (Beyer et al. 2022, arXiv:2205.01580, for two axes). Channels that
    three axes cannot share out evenly stay zero.

    Args:
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


def sequence_table(length: int, dim: int) -> Float[Tensor, "1 n d"]:
    """Compute fixed embeddings of positions in a sequence (Vaswani et al. 2017, section 3.5).

    Sines and cosines of the position alternate, with frequencies that fall geometrically from 1 to nearly
    1 / 10,000.
    """
    positions = torch.arange(length, dtype=torch.float64)
    channel = torch.arange(dim)
    angles = positions[:, None] * 10_000 ** -((channel - channel % 2).double() / dim)
    return torch.where(channel % 2 == 0, angles.sin(), angles.cos())[None].float()


class ComputedBuffers(nn.Module):
    """Base class of modules with buffers that follow from their settings, and are therefore not saved.

    What was built on `meta` computes them when it is materialised, as by `to_empty`.
    """

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the buffers by name."""
        return {}

    def register_computed(self) -> None:
        """Register the buffers; called once, when the settings are known."""
        for name, buffer in self.compute_buffers().items():
            self.register_buffer(name, buffer, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ComputedBuffers:
        empty = [name for name, buffer in self._buffers.items() if buffer is not None and buffer.is_meta]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.compute_buffers().items() if empty else ():
            own = self._buffers[name]
            if name in empty and own is not None and not own.is_meta:
                own.copy_(buffer)
        return self


class Positions(ComputedBuffers):
    """A table of embeddings: a row for each prefix token with a position, then one for each cell of a grid.

    Args:
        prefix: rows for prefix tokens (as a rule the class token), which come first.

    Attributes:
        interpolates: a smaller grid is one of larger cells, instead of a part of the largest grid.
        interpolation: how it is, where it is.
    """

    table: Tensor
    interpolation = Interpolation()

    def __init__(self, grid: Sequence[int], *, prefix: int = 0) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.prefix = prefix
        self.interpolates = False

    def forward(
        self, tokens: Float[Tensor, "*b n d"], *, prefix: int | None = None, grid: Sequence[int] | None = None
    ) -> Float[Tensor, "*b n d"]:
        """Add the embeddings to prefix tokens and patches.

        Args:
            prefix: number of prefix tokens, of which those without a position stay as they are; default all
                tokens that are no patches.
        """
        grid = self.grid if grid is None else grid
        prefix = tokens.shape[1] - prod(grid) if prefix is None else prefix
        # Proxies, traced sizes and those that stay open have no values to compare.
        known = isinstance(prefix, int) and isinstance(grid, tuple) and not jit_is_tracing()
        is_open = known and isinstance(grid[0], (torch.SymInt, Proxy))
        if known and not is_open and (prefix, grid) == (self.prefix, self.grid):
            return tokens + self.table
        return tokens + select_rows(self.table, self.prefix, self.grid, prefix, grid, self.stretch)

    def table_for(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Return the embeddings of a grid's cells: those of the same places in the largest grid.

        If `interpolates` is set, a smaller grid covers the whole picture, and the table is interpolated.
        """
        return select_rows(self.table, self.prefix, self.grid, 0, grid, self.stretch)

    def resized_cells(
        self,
        cells: Float[Tensor, "b n d"],
        old: Sequence[int],
        new: Sequence[int],
        *,
        antialias: bool = True,
    ) -> Float[Tensor, "b m d"]:
        """Interpolate embeddings of a grid's cells to another one for good; see `resize_table`."""
        mode, low_pass, corners, _ = self.interpolation
        return resize_table(
            cells, old, new, mode=mode, antialias=antialias and low_pass, align_corners=corners
        )

    @property
    def stretch(self) -> Interpolation | None:
        """How the table is interpolated; None where it is cut."""
        return self.interpolation if self.interpolates else None

    def for_prefix(self, tokens: int) -> Float[Tensor, "1 k d"]:
        """Return what is added to the prefix tokens; zero for those without a position."""
        return F.pad(self.table[:, : self.prefix], (0, 0, 0, tokens - self.prefix))


@fx_leaf
def select_rows(
    table: Float[Tensor, "1 n d"],
    own_prefix: int,
    own_grid: tuple[int, ...],
    prefix: int,
    grid: Sequence[int],
    stretch: Interpolation | None = None,
) -> Float[Tensor, "1 m d"]:
    """Return the rows of a table for so many prefix tokens, and for the cells of a grid.

    Args:
        table: rows of prefix tokens, then of cells.
        own_prefix: rows of prefix tokens that the table has.
        own_grid: cells along each axis that the table has.
        prefix: number of prefix tokens; the rows of those without a position are zero.
        stretch: how the table is interpolated to the grid; None to cut it.
    """
    if prefix == own_prefix and is_same_grid(grid, own_grid):
        return table
    cells = table[:, own_prefix:]
    whole = own_grid
    if stretch is not None:
        whole = (max(grid),) * len(grid) if stretch.keep_aspect else tuple(grid)
        cells = resize_table(
            cells,
            own_grid,
            whole,
            mode=stretch.mode,
            antialias=stretch.antialias,
            align_corners=stretch.align_corners,
        )
    cells = crop_cells(cells, whole, grid, dim=1)
    if prefix == 0:
        return cells
    return torch.cat([F.pad(table[:, :own_prefix], (0, 0, 0, prefix - own_prefix)), cells], dim=1)


class LearnedPositions(Positions):
    """A learned embedding for each cell of a grid, and for the prefix tokens that have a position.

    Args:
        std: standard deviation at the start.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, prefix: int = 0, std: float = EMBEDDING_STD) -> None:
        super().__init__(grid, prefix=prefix)
        self.std = std
        self.table = nn.Parameter(torch.empty(1, prefix + prod(grid), dim))
        init_embeddings(self.table, std=std)

    def with_prefix(self, prefix: int) -> LearnedPositions:
        """Return new embeddings of the same kind for so many prefix tokens."""
        made = type(self)(self.grid, self.table.shape[-1], prefix=prefix, std=self.std)
        made.interpolates, made.interpolation = self.interpolates, self.interpolation
        return made

    def resized(self, like: LearnedPositions, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return the table for another grid."""
        prefix, cells = self.table[:, : self.prefix], self.table[:, self.prefix :]
        cells = self.resized_cells(cells, self.grid, like.grid, antialias=antialias)
        return {"table": torch.cat([prefix, cells], dim=1)}


class Learned2DPositions(Positions):
    """A learned embedding of the column and one of the row, half of the dimension each (ViT, appendix D.4).

    Args:
        grid: cells along each of two axes, of the largest input.
        dim: token dimension, a multiple of 2.
        prefix: rows for prefix tokens, which are learned whole.
        std: standard deviation at the start.

    Raises:
        ValueError: if the dimension is odd, or the grid is not 2-D.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, prefix: int = 0, std: float = EMBEDDING_STD) -> None:
        super().__init__(grid, prefix=prefix)
        if dim % 2 or len(grid) != 2:
            raise ValueError(
                f"learned 2-D positions need an even dim and a 2-D grid, got {dim} and {tuple(grid)}"
            )
        self.rows = nn.Parameter(torch.empty(1, grid[0], dim // 2))
        self.columns = nn.Parameter(torch.empty(1, grid[1], dim // 2))
        self.first = nn.Parameter(torch.empty(1, prefix, dim)) if prefix else None
        init_embeddings(*self.parameters(), std=std)

    def resized(self, like: Learned2DPositions, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return both tables for another grid."""
        return resize_axes(self, like)

    @property
    def table(self) -> Float[Tensor, "1 n d"]:  # type: ignore[override]
        """The embeddings of prefix tokens and of the cells of the largest grid."""
        rows, columns = self.grid
        x = self.columns.unsqueeze(1).expand(-1, rows, -1, -1)
        y = self.rows.unsqueeze(2).expand(-1, -1, columns, -1)
        cells = torch.cat([x, y], dim=-1).flatten(1, 2)
        return cells if self.first is None else torch.cat([self.first, cells], dim=1)


class SinCosPositions(Positions):
    """Fixed sine and cosine embeddings (see `sincos_table` and `sequence_table`).

    Args:
        dim: token dimension, a multiple of 4 for two axes.
        endpoint: see `sincos_table`.
        sequence: embed positions in the sequence, prefix tokens first, instead of those along the axes. A
            smaller grid has the positions that its cells have in the largest one.
        temperature: see `sincos_table`.
    """

    def __init__(
        self,
        grid: Sequence[int],
        dim: int,
        *,
        prefix: int = 0,
        endpoint: bool = True,
        sequence: bool = False,
        temperature: float = 10_000.0,
    ) -> None:
        super().__init__(grid, prefix=prefix)
        self.dim = dim
        self.temperature = temperature
        self.endpoint = endpoint
        self.sequence = sequence
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the table."""
        return {"table": self.compute(self.grid, self.dim)}

    def compute(self, grid: Sequence[int], dim: int) -> Float[Tensor, "1 n d"]:
        """Compute the table of a grid; the rows of prefix tokens, zero along axes, come first."""
        if self.sequence:
            return sequence_table(self.prefix + prod(grid), dim)
        table = sincos_table(grid, dim, temperature=self.temperature, endpoint=self.endpoint)
        return F.pad(table, (0, 0, self.prefix, 0))


# Names of the tables of factorised positions.
TABLES = ("frames", "rows", "columns")


class FourierPositions(Positions):
    """Fixed waves over the grid, projected to the token dimension (XCiT, arXiv:2106.09681, section 3.4).

    Positions are relative to the size of the input, so an input of any size has them.
    """

    def __init__(self, grid: Sequence[int], dim: int) -> None:
        super().__init__(grid)
        self.proj = nn.Linear(2 * WAVES, dim)
        init_xavier(self.proj)
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the waves over the largest grid."""
        return {"table": fourier_table(self.grid)}

    def forward(
        self, tokens: Float[Tensor, "b n d"], *, prefix: int | None = None, grid: Sequence[int] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Add the embeddings to the patches, of which there are no prefix tokens before."""
        return tokens + self.table_for(self.grid if grid is None else grid)

    def table_for(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Return the embeddings of a grid's cells."""
        return self.proj(fitting_waves(self.table, self.grid, grid))


@fx_leaf
def fitting_waves(
    table: Float[Tensor, "1 n e"], own: Sequence[int], grid: Sequence[int]
) -> Float[Tensor, "1 m e"]:
    """Return the waves over a grid: the table, which is that of one grid, or computed ones."""
    return table if is_same_grid(grid, own) else fourier_table(grid).to(table)


def fourier_table(grid: Sequence[int], *, temperature: float = 10_000.0) -> Float[Tensor, "1 n e"]:
    """Compute sines and cosines of the positions of a grid's cells, 32 for the row, then 32 for the column.

    Positions go up to 2 pi at the last cell; sine and cosine alternate, and frequencies fall geometrically
    from 1 towards 1 / temperature.
    """
    frequency = temperature ** -(torch.arange(0, WAVES, 2, dtype=torch.float64) / WAVES)
    waves = []
    for extent in grid:
        position = torch.arange(1, extent + 1, dtype=torch.float64) / (extent + 1e-6) * 2 * pi
        angle = position[:, None] * frequency
        waves.append(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))
    rows, columns = (len(wave) for wave in waves)
    y, x = waves[0][:, None].expand(-1, columns, -1), waves[1].expand(rows, -1, -1)
    return torch.cat([y, x], dim=2).flatten(0, 1)[None].float()


class FactorisedPositions(Positions):
    """The sum of learned embeddings, one of each axis (NaViT, arXiv:2307.06304, section 2.1).

    Args:
        grid: cells along each axis that the tables have: of rows and columns, or of frames, rows and columns.
        kind: "abs" takes the table's entries one by one; "frac" interpolates it along each side of the
            grid; "aspect" interpolates all along the longer side.
    """

    def __init__(self, grid: Sequence[int], dim: int, *, kind: str = "abs") -> None:
        super().__init__(grid)
        self.kind = kind
        self.axes = TABLES[-len(grid) :]
        for axis, extent in zip(self.axes, grid, strict=True):
            self.register_parameter(axis, nn.Parameter(torch.empty(1, extent, dim)))
        # The sum has the variance of one.
        init_embeddings(*self.parameters(), std=EMBEDDING_STD / len(grid) ** 0.5)

    def resized(self, like: FactorisedPositions, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return both tables for another grid."""
        return resize_axes(self, like)

    def forward(
        self, tokens: Float[Tensor, "b n d"], *, prefix: int | None = 0, grid: Sequence[int] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Add the embeddings to the patches; prefix tokens have none."""
        table = self.table_for(self.grid if grid is None else grid)
        return tokens + F.pad(table, (0, 0, prefix or 0, 0))

    def table_for(self, grid: Sequence[int]) -> Float[Tensor, "1 n d"]:
        """Return the embeddings of a grid's cells."""
        grid = static_size(grid)
        table: Tensor | None = None
        for axis, extent in zip(self.axes, grid, strict=True):
            one: Tensor = getattr(self, axis)
            if self.kind != "abs":
                one = _stretch(one, grid if self.kind == "aspect" else (extent,))
            one = one[:, :extent]
            # each further axis is the innermost one of the row-major order
            table = one if table is None else (table.unsqueeze(2) + one.unsqueeze(1)).flatten(1, 2)
        assert table is not None, "a grid has an axis"
        return table


def resize_axes(
    positions: Learned2DPositions | FactorisedPositions, like: Learned2DPositions | FactorisedPositions
) -> dict[str, Tensor]:
    """Interpolate the embeddings of rows, of columns and of frames, if any, each along its axis."""
    axes = zip(TABLES[-len(like.grid) :], positions.grid, like.grid, strict=True)
    return {name: resize_table(getattr(positions, name), (old,), (new,)) for name, old, new in axes}


@contextmanager
def interpolated_positions(model: nn.Module) -> Iterator[None]:
    """Context manager: interpolate positions, so that smaller inputs are whole pictures at a lower
    resolution."""
    changed = [part for part in model.modules() if isinstance(part, Positions) and not part.interpolates]
    for part in changed:
        part.interpolates = True
    try:
        yield
    finally:
        for part in changed:
            part.interpolates = False


@fx_leaf
def _stretch(table: Float[Tensor, "1 n d"], extents: Sequence[int]) -> Float[Tensor, "1 m d"]:
    """Interpolate a table of one axis to the largest of some extents."""
    extent = max(extents)
    if extent == table.shape[1]:
        return table
    stretched = F.interpolate(table.float().transpose(1, 2), extent, mode="linear", align_corners=False)
    return stretched.transpose(1, 2).to(table.dtype)


@dataclass(frozen=True)
class NoPositions(Option):
    """Option: nothing is added to the tokens."""

    kind: ClassVar[str] = "none"

    def build(self, grid: Sequence[int], dim: int, *, class_token: bool, registers: int = 0) -> None:
        """Build no table."""


@dataclass(frozen=True)
class Learned(Option):
    """Option: one learned embedding for each place is added to the tokens.

    Args:
        class_token: the class token has an embedding, too.
        registers: so have registers.
        std: standard deviation at the start.
        dynamic_img_size: interpolate the embeddings to the grid of each input (of images bicubic and
            antialiased), as timm does under that name; `ViT` then takes images of any size that the patch
            divides, other models those up to their largest; "corners" does so bilinearly, the corner cells of
            both grids at the same places, as in Qwen3-VL (arXiv:2511.21631). By default a smaller input has
            the embeddings of the same places in the largest one.
    """

    kind: ClassVar[str] = "learned"
    class_token: bool = True
    std: float = EMBEDDING_STD
    dynamic_img_size: bool | Literal["corners"] = False
    registers: bool = False

    def build(self, grid: Sequence[int], dim: int, *, class_token: bool, registers: int = 0) -> Positions:
        """Build the table for a grid.

        Raises:
            ValueError: if registers have embeddings, but there are none, or the class token before them has
                none.
        """
        if self.registers and not registers:
            raise ValueError("positions of registers need registers, got registers=True and none of them")
        if class_token and self.registers and not self.class_token:
            raise ValueError("registers with positions follow a class token with one, got class_token=False")
        prefix = int(class_token and self.class_token) + (registers if self.registers else 0)
        positions = self.make(grid, dim, prefix=prefix)
        positions.interpolates = bool(self.dynamic_img_size)
        if self.dynamic_img_size == "corners":
            positions.interpolation = CORNERS
        return positions

    def make(self, grid: Sequence[int], dim: int, *, prefix: int) -> Positions:
        """Build the table for a grid and so many prefix tokens."""
        return LearnedPositions(grid, dim, prefix=prefix, std=self.std)


@dataclass(frozen=True)
class Learned2D(Learned):
    """Option: a learned embedding for the column and one for the row, half of the dimension each.

    Args:
        class_token: the class token has an embedding, too.
        registers: so have registers.
        std: standard deviation at the start.
        dynamic_img_size: see `Learned`.
    """

    kind: ClassVar[str] = "learned_2d"

    def make(self, grid: Sequence[int], dim: int, *, prefix: int) -> Positions:
        """Build the tables for a grid and so many prefix tokens."""
        return Learned2DPositions(grid, dim, prefix=prefix, std=self.std)


@dataclass(frozen=True)
class SinCos(Option):
    """Option: fixed sine and cosine embeddings of the axes are added to the patches."""

    kind: ClassVar[str] = "sincos"

    def build(self, grid: Sequence[int], dim: int, *, class_token: bool, registers: int = 0) -> Positions:
        """Build the table for a grid."""
        return SinCosPositions(grid, dim)


@dataclass(frozen=True)
class Sequential(Option):
    """Option: fixed embeddings of the position in the sequence of patches are added to the patches."""

    kind: ClassVar[str] = "sequence"

    def build(self, grid: Sequence[int], dim: int, *, class_token: bool, registers: int = 0) -> Positions:
        """Build the table for a grid."""
        return SinCosPositions(grid, dim, sequence=True)


class DecomposedPositions(nn.Module):
    """Positions inside attention: products of a query with embeddings of a key's offset along each axis.

    MViTv2, arXiv:2112.01526, section 4.1. Embeddings are interpolated for windows of other extents.

    Args:
        window: rows and columns of the customary window.
    """

    def __init__(self, window: Sequence[int], dim_head: int) -> None:
        super().__init__()
        self.window = tuple(window)
        height, width = window
        self.rows = nn.Parameter(torch.zeros(2 * height - 1, dim_head))
        self.columns = nn.Parameter(torch.zeros(2 * width - 1, dim_head))

    def resized(self, like: DecomposedPositions, *, antialias: bool = True) -> dict[str, Tensor]:
        """Return both tables for another window."""
        height, width = like.window
        return {"rows": resize_axis(self.rows, height), "columns": resize_axis(self.columns, width)}

    def forward(
        self, q: Queries, k: Keys, inputs: BlockInputs, key_grid: Sequence[int] | None = None
    ) -> tuple[Queries, Keys, Float[Tensor, "b h n m"]]:
        """Return queries and keys as they are, and the products, which are added to the scores.

        Args:
            inputs: rows and columns of the queries, default those of the window; and prefix tokens, whose
                products are zero.
            key_grid: rows and columns of the keys, if they are others.
        """
        grid = self.window if inputs.grid is None else inputs.grid
        keys = grid if key_grid is None else key_grid
        return q, k, offset_products(q, self.rows, self.columns, grid, keys, inputs.num_prefix_tokens)


@fx_leaf
def offset_products(
    q: Queries,
    rows: Float[Tensor, "k e"],
    columns: Float[Tensor, "l e"],
    grid: Sequence[int],
    key_grid: Sequence[int],
    prefix: int = 0,
) -> Float[Tensor, "b h n m"]:
    """Return the products of all queries of a window with the embeddings of the offsets of its keys."""
    cells = q[:, :, prefix:].unflatten(2, tuple(grid))
    y = torch.einsum("bhyxe,yke->bhyxk", cells, axis_embeddings(rows, grid[0], key_grid[0]))
    x = torch.einsum("bhyxe,xke->bhyxk", cells, axis_embeddings(columns, grid[1], key_grid[1]))
    products = (y.unsqueeze(5) + x.unsqueeze(4)).flatten(4, 5).flatten(2, 3)
    return F.pad(products, (prefix, 0, prefix, 0)) if prefix else products


def axis_embeddings(table: Float[Tensor, "k e"], queries: int, keys: int) -> Float[Tensor, "n m e"]:
    """Return the embedding of the offset of each query and each key along one axis.

    The fewer of the two, which are pooled, are spread over the others, and stand at whole places.

    Args:
        queries: their number along the axis.
        keys: their number along the axis.
    """
    extent = max(queries, keys)
    if not is_same_grid((2 * extent - 1,), table.shape[:1]):
        table = resize_axis(table, extent)
    places = torch.arange(queries, device=table.device) * extent // queries
    # counted from the last key
    before = (keys - 1 - torch.arange(keys, device=table.device)) * extent // keys
    return table[places[:, None] + before]
