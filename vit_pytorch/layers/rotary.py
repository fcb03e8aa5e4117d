"""Rotary position embeddings (RoPE) of one to three axes.

Each pair of channels of a head is a point in the plane, and is rotated by the position times a frequency (Su
et al. 2021, arXiv:2104.09864, section 3.2): the product of a query and a key depends only on the offset of
their positions. Positions count patches, so that an image of another size keeps the angles between
neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.attention import BlockInputs, Queries, jit_is_tracing
from vit_pytorch.layers.blocks import fx_leaf, is_tracing
from vit_pytorch.layers.offsets import cells, crop_cells
from vit_pytorch.layers.options import Option
from vit_pytorch.layers.patches import token_ids
from vit_pytorch.layers.positions import ComputedBuffers, covers, is_same_grid
from vit_pytorch.layers.relative import CachedBias


def frequencies(dim_head: int, axes: int, theta: float) -> Float[Tensor, " f"]:
    """Return the angle between neighbours for each pair of channels of an axis; they fall from 1.

    Heo et al. 2024 (arXiv:2403.13298), section 3.2, for two axes. Channels that the axes cannot share evenly
    are not rotated.

    Args:
        axes: axes of the grid, each of which has as many pairs.
        theta: base of the frequencies.

    Raises:
        ValueError: if the heads have no pair of channels for each axis.
    """
    if dim_head < 2 * axes:
        raise ValueError(
            f"rotary positions on {axes} axes need a head dimension of at least {2 * axes}, got {dim_head}"
        )
    count = dim_head // (2 * axes)
    return theta ** (-torch.arange(count, dtype=torch.float64) / count)


def turns(angles: Float[Tensor, "*s f"]) -> Float[Tensor, "*s f 2"]:
    """Return the rotations by some angles: cosine and sine."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


@fx_leaf
def rotate(
    x: Float[Tensor, "b h n e"], rotation: Float[Tensor, "*s n f 2"], halves: bool = False
) -> Float[Tensor, "b h n e"]:
    """Rotate each pair of channels of queries or keys, in single precision at least.

    Args:
        x: queries or keys; channels 2 i and 2 i + 1 are a pair, and those after the last pair stay.
        rotation: cosines and sines of f pairs, which broadcast to the heads.
        halves: channels i and f + i are a pair instead.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    rotated = 2 * rotation.shape[-2]
    if halves:
        first, second = x[..., :rotated].to(dtype).chunk(2, dim=-1)
        cos, sin = rotation.to(dtype).unbind(-1)
        turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
        return torch.cat([turned, x[..., rotated:]], dim=-1)
    pairs, rotation = x[..., :rotated].unflatten(-1, (-1, 2)).to(dtype), rotation.to(dtype)
    if is_tracing(x) or x.shape[-1] % 2:
        # strides of an odd number of channels are none of complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        # One kernel, several times as fast; compilers do without complex numbers.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    turned = turned.flatten(-2).to(x.dtype)
    if not jit_is_tracing() and rotated == x.shape[-1]:
        return turned
    return torch.cat([turned, x[..., rotated:]], dim=-1)


@fx_leaf
def turn_channels(
    x: Float[Tensor, "b h n e"], rotation: Float[Tensor, "*s n f 2"]
) -> Float[Tensor, "b h n e"]:
    """Turn each channel of queries or keys by an angle of its own, in single precision at least.

    Args:
        x: queries or keys; channels 2 i and 2 i + 1 are a pair, and those after the last pair stay.
        rotation: cosines and sines of f channels, which broadcast to the heads.
    """
    turned = x[..., : rotation.shape[-2]].to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = rotation.to(turned.dtype).unbind(-1)
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    crossed = torch.stack([-second, first], dim=-1).flatten(-2)
    return torch.cat([(turned * cos + crossed * sin).to(x.dtype), x[..., rotation.shape[-2] :]], dim=-1)


def _with_prefix(rotation: Float[Tensor, "*h n f 2"], prefix: int) -> Float[Tensor, "*h m f 2"]:
    """Put rotations by nothing before, for prefix tokens."""
    if not prefix:
        return rotation
    # There may be fewer patches than prefix tokens.
    still = turns(torch.zeros_like(rotation[..., :1, :, 0]).repeat_interleave(prefix, dim=-2))
    return torch.cat([still, rotation], dim=-3)


class AxialRotary(ComputedBuffers):
    """Rotations by fixed frequencies, each pair of channels along one axis (RoPE-Axial, arXiv:2403.13298).

    The pairs of the last axis come first: x, then y. The table is computed once.

    Args:
        dim_head: head dimension, at least twice the axes.
        theta: base of the frequencies, which fall from 1 towards 1 / `theta`.

    Raises:
        ValueError: if the heads have no pair of channels for each axis.
    """

    table: Tensor
    # Whether the edges of any grid are those of the whole one.
    stretches: ClassVar[bool] = False

    def __init__(self, grid: Sequence[int], dim_head: int, *, theta: float = 100.0) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.dim_head = dim_head
        self.theta = theta
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the rotation of each cell."""
        return {"table": self.compute(self.grid)}

    def compute(self, grid: Sequence[int]) -> Float[Tensor, "n f 2"]:
        """Compute the rotation of each cell of a grid."""
        frequency = frequencies(self.dim_head, len(self.grid), self.theta)
        return turns((cells(grid).flip(-1)[..., None] * frequency).flatten(1)).float()

    def forward(
        self, grid: Sequence[int], prefix: int = 0, ids_keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "*b m f 2"]:
        """Return the rotation of each token, which all heads share.

        Args:
            prefix: number of prefix tokens, which are not rotated.
        """
        rotation = self.cell_rotations(grid)
        if ids_keep is not None:
            rotation = rotation[ids_keep][:, None]
        return _with_prefix(rotation, prefix)

    def cell_rotations(self, grid: Sequence[int]) -> Float[Tensor, "n f 2"]:
        """Return the rotation of each cell of a grid: that of the same place in the whole one, or, if the
        grid is stretched, of its own."""
        if self.stretches:
            return self.table if is_same_grid(grid, self.grid) else self.compute(grid).to(self.table)
        if covers(self.grid, grid):
            return crop_cells(self.table, self.grid, grid, dim=0)
        return self.compute(grid).to(self.table)


class NormalizedAxialRotary(AxialRotary):
    """Rotations by places between -1 and 1 along each axis, the centres of the patches, in full turns.

    DINOv3 (O. Siméoni et al. 2025, arXiv:2508.10104, section 3.2): the angles between the image's edges are
    the same for every size. The pairs of the first axis come first: y, then x.
    """

    stretches = True

    def compute(self, grid: Sequence[int]) -> Float[Tensor, "n f 2"]:
        """Compute the rotation of each cell of a grid."""
        frequency = frequencies(self.dim_head, len(self.grid), self.theta)
        along = zip(cells(grid).double().unbind(-1), grid, strict=True)
        places = torch.stack([(2 * cell + 1) / extent - 1 for cell, extent in along], dim=-1)
        return turns((2 * torch.pi * places[..., None] * frequency).flatten(1)).float()


class HalvedAxialRotary(AxialRotary):
    """Rotations by fixed frequencies, the pairs of the first axis first: y, then x.

    A pair is a channel of the first half of a head and one of the second (`RotaryPositions`), as in language
    models, and so in the vision towers beside them (Qwen3-VL, arXiv:2511.21631).
    """

    def compute(self, grid: Sequence[int]) -> Float[Tensor, "n f 2"]:
        """Compute the rotation of each cell of a grid."""
        frequency = frequencies(self.dim_head, len(self.grid), self.theta)
        return turns((cells(grid).double()[..., None] * frequency).flatten(1)).float()


class ScaledAxialRotary(AxialRotary):
    """Rotations by the places that a reference grid would have on the image (EVA-02, arXiv:2303.11331).

    Along an axis of n cells, of which the reference has m, cell i stands at (i + offset) m / n: the angles
    between the image's edges are the same for every size.

    Args:
        dim_head: head dimension, at least twice the axes.
        reference: cells of the reference grid along each axis.
        theta: base of the frequencies, which fall from 1 towards 1 / `theta`.
        offset: place of the first cell.
        first_axis_first: the pairs of the first axis come first: y, then x.

    Raises:
        ValueError: if the reference has another number of axes, or the heads have no pair of channels for
            each.
    """

    stretches = True

    def __init__(
        self,
        grid: Sequence[int],
        dim_head: int,
        *,
        reference: Sequence[int],
        theta: float = 10_000.0,
        offset: float = 0.0,
        first_axis_first: bool = False,
    ) -> None:
        if len(reference) != len(grid):
            raise ValueError(f"a reference for grids of {len(grid)} axes needs as many, got {reference}")
        self.reference = tuple(reference)
        self.offset = offset
        self.first_axis_first = first_axis_first
        super().__init__(grid, dim_head, theta=theta)

    def compute(self, grid: Sequence[int]) -> Float[Tensor, "n f 2"]:
        """Compute the rotation of each cell of a grid."""
        frequency = frequencies(self.dim_head, len(self.grid), self.theta)
        along = zip(cells(grid).double().unbind(-1), self.reference, grid, strict=True)
        places = torch.stack([(cell + self.offset) * (extent / own) for cell, extent, own in along], dim=-1)
        if not self.first_axis_first:
            places = places.flip(-1)
        return turns((places[..., None] * frequency).flatten(1)).float()


class TiledAxialRotary(AxialRotary):
    """Rotations by fixed frequencies of which each channel has its own: those of an axis follow twice.

    V-JEPA 2 (M. Assran et al. 2025, arXiv:2506.09985, section 2.2) as its code has them and its weights were
    trained: both channels of a pair turn by angles of their own, so that it is no rotation but for the
    middle one. The channels of the first axis come first: t, y, x.
    """

    def compute(self, grid: Sequence[int]) -> Float[Tensor, "n e 2"]:
        """Compute the cosine and the sine of each channel in each cell of a grid."""
        frequency = frequencies(self.dim_head, len(self.grid), self.theta).repeat(2)
        return turns((cells(grid).double()[..., None] * frequency).flatten(1)).float()


class MixedRotary(CachedBias):
    """Rotations by learned frequencies along all axes at once, of each layer, head and pair of channels.

    RoPE-Mixed, arXiv:2403.13298, section 3.2. The pairs of a head start in the directions of a
    coordinate system that is rotated at random, with the frequencies of `frequencies` along each.

    Args:
        dim_head: head dimension, at least twice the axes.
        theta: base of the initial frequencies.

    Raises:
        ValueError: if the heads have no pair of channels for each axis.
    """

    places: Tensor

    def __init__(
        self, grid: Sequence[int], dim_head: int, *, heads: int, depth: int, theta: float = 10.0
    ) -> None:
        super().__init__()
        self.grid = tuple(grid)
        axes = len(grid)
        frequency = frequencies(dim_head, axes, theta).float()
        directions = _directions(depth * heads, axes).unflatten(0, (depth, heads))
        freqs = directions[..., None] * frequency
        self.freqs = nn.Parameter(freqs.movedim(3, 0).flatten(3).contiguous())
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the coordinates of the cells."""
        return {"places": cells(self.grid).flip(-1)}

    def compute(self, *window: int) -> Float[Tensor, "l h n f 2"]:
        """Compute the rotations of all layers for a grid of so many prefix tokens, and cells along each
        axis."""
        prefix, *grid = window
        freqs = self.freqs.to(torch.promote_types(self.freqs.dtype, torch.float32))
        known = covers(self.grid, grid)
        places = crop_cells(self.places, self.grid, grid, dim=0) if known else cells(grid).flip(-1)
        places = places.to(freqs)
        angles = (places.T[:, None, None, :, None] * freqs.unsqueeze(-2)).sum(dim=0)
        return _with_prefix(turns(angles), prefix)

    def rotations(
        self, grid: Sequence[int], prefix: int = 0, ids_keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "*b l h m f 2"]:
        """Return the rotations of all layers.

        Args:
            prefix: number of prefix tokens, which are not rotated.
        """
        rotations = self(prefix, *grid)
        if ids_keep is None:
            return rotations
        return rotations[:, :, token_ids(ids_keep, prefix)].movedim(2, 0)


def _directions(count: int, axes: int) -> Float[Tensor, "k p a"]:
    """Draw so many rotations of n-dimensional space, uniformly; their rows are directions."""
    drawn, triangle = torch.linalg.qr(torch.randn(count, axes, axes))
    drawn = drawn * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    mirrored = torch.linalg.det(drawn).sign()
    drawn[:, 0] *= mirrored[:, None]
    return drawn


class RotaryPositions(nn.Module):
    """Positions inside attention: queries and keys are rotated.

    Args:
        layer: index of this layer's rotations; None where all layers share one.
        halves: pairs are a channel of the first half and one of the second; see `rotate`.
    """

    def __init__(self, layer: int | None = None, *, halves: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.halves = halves

    def forward(self, q: Queries, k: Queries, inputs: BlockInputs) -> tuple[Queries, Queries, Tensor | None]:
        """Return rotated queries and keys, and the mask as it is."""
        rotation = inputs.rotation
        if rotation is None:
            return q, k, inputs.mask
        if self.layer is not None:
            rotation = rotation.select(-5, self.layer)
        return rotate(q, rotation, self.halves), rotate(k, rotation, self.halves), inputs.mask


class TiledRotaryPositions(RotaryPositions):
    """Positions inside attention: each channel turns by its own angle (`TiledAxialRotary`)."""

    def forward(self, q: Queries, k: Queries, inputs: BlockInputs) -> tuple[Queries, Queries, Tensor | None]:
        """Return turned queries and keys, and the mask as it is."""
        if inputs.rotation is None:
            return q, k, inputs.mask
        return turn_channels(q, inputs.rotation), turn_channels(k, inputs.rotation), inputs.mask


@dataclass(frozen=True)
class Rotary(Option):
    """Option: queries and keys are rotated by their positions (Heo et al. 2024, arXiv:2403.13298).

    Args:
        theta: base of the rotary frequencies; default 100 (10 if learned).
        learned: frequencies along all axes at once are learned, of each layer and head (RoPE-Mixed), instead
            of fixed ones along each axis (RoPE-Axial).
    """

    kind: ClassVar[str] = "rope"
    theta: float | None = None
    learned: bool = False

    def build(
        self, grid: Sequence[int], dim_head: int, *, heads: int, depth: int
    ) -> AxialRotary | MixedRotary:
        """Build what computes the rotations for a grid."""
        if self.learned:
            return MixedRotary(grid, dim_head, heads=heads, depth=depth, theta=self.theta or 10.0)
        return AxialRotary(grid, dim_head, theta=self.theta or 100.0)

    def positions(self, layer: int) -> RotaryPositions:
        """Build the positions inside the attention of a layer."""
        return RotaryPositions(layer if self.learned else None)


@dataclass(frozen=True)
class HalvedRotary(Option):
    """Option: queries and keys are rotated as those of language models are (`HalvedAxialRotary`).

    Args:
        theta: base of the rotary frequencies.
    """

    kind: ClassVar[str] = "rope_halves"
    theta: float = 10_000.0

    def build(self, grid: Sequence[int], dim_head: int, *, heads: int, depth: int) -> HalvedAxialRotary:
        """Build what computes the rotations for a grid."""
        return HalvedAxialRotary(grid, dim_head, theta=self.theta)

    def positions(self, layer: int) -> RotaryPositions:
        """Build the positions inside the attention of a layer."""
        return RotaryPositions(halves=True)


@dataclass(frozen=True)
class NormalizedRotary(Option):
    """Option: queries and keys are rotated by places between -1 and 1 (DINOv3, arXiv:2508.10104).

    Args:
        theta: base of the rotary frequencies.
    """

    kind: ClassVar[str] = "rope_normalized"
    theta: float = 100.0

    def build(self, grid: Sequence[int], dim_head: int, *, heads: int, depth: int) -> NormalizedAxialRotary:
        """Build what computes the rotations for a grid."""
        return NormalizedAxialRotary(grid, dim_head, theta=self.theta)

    def positions(self, layer: int) -> RotaryPositions:
        """Build the positions inside the attention of a layer."""
        return RotaryPositions(halves=True)


@dataclass(frozen=True)
class ScaledRotary(Option):
    """Option: queries and keys are rotated by places on a reference grid (EVA-02, arXiv:2303.11331).

    An image of another size has the same angles between its edges.

    Args:
        reference: cells of the reference grid along each axis; default those of the largest input.
        theta: base of the rotary frequencies.
        offset: place of the first cell; prefix tokens, which are not rotated, stand at 0.
        first_axis_first: the pairs of channels of the first axis come first, as in EVA-02, instead of those
            of the last one, as in the Perception Encoder.
    """

    kind: ClassVar[str] = "rope_scaled"
    reference: Sequence[int] | None = None
    theta: float = 10_000.0
    offset: float = 0.0
    first_axis_first: bool = False

    def build(self, grid: Sequence[int], dim_head: int, *, heads: int, depth: int) -> ScaledAxialRotary:
        """Build what computes the rotations for a grid."""
        return ScaledAxialRotary(
            grid,
            dim_head,
            reference=grid if self.reference is None else self.reference,
            theta=self.theta,
            offset=self.offset,
            first_axis_first=self.first_axis_first,
        )

    def positions(self, layer: int) -> RotaryPositions:
        """Build the positions inside the attention of a layer."""
        return RotaryPositions()


@dataclass(frozen=True)
class TiledRotary(Option):
    """Option: channels turn by angles of their own, as in V-JEPA 2 (see `TiledAxialRotary`).

    Args:
        theta: base of the rotary frequencies.
    """

    kind: ClassVar[str] = "rope_tiled"
    theta: float = 10_000.0

    def build(self, grid: Sequence[int], dim_head: int, *, heads: int, depth: int) -> TiledAxialRotary:
        """Build what computes the angles for a grid."""
        return TiledAxialRotary(grid, dim_head, theta=self.theta)

    def positions(self, layer: int) -> TiledRotaryPositions:
        """Build the positions inside the attention of a layer."""
        return TiledRotaryPositions()


RotaryOption = Rotary | HalvedRotary | NormalizedRotary | ScaledRotary | TiledRotary
