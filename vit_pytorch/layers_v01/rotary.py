"""Where a token stands, as an angle by which its queries and keys are turned: rotary positions, n-D.

Each pair of channels of a head is a point in the plane, and is turned by the place times a frequency (Su et
al. 2021, arXiv:2104.09864, section 3.2): the product of a query and a key depends on the offset of their
places alone. Places count patches, so that an image of another size keeps the angles between neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers_v01.attention import Attention
from vit_pytorch.layers_v01.relative import CachedBias, cells, crop_cells, places_of


def frequencies(dim_head: int, axes: int, theta: float) -> Float[Tensor, " f"]:
    """Give the angles between neighbours, of each pair of channels of an axis; they fall from 1.

    Heo et al. 2024 (arXiv:2403.13298), section 3.2, where there are two axes.

    Args:
        dim_head: width of a head.
        axes: axes of the grid, each of which has as many pairs.
        theta: the inverse of the frequency that would come after the last.

    Raises:
        ValueError: where the width does not give each axis as many pairs of channels.
    """
    if dim_head % (2 * axes):
        raise ValueError(
            f"rotary positions on {axes} axes need heads of a width that is a multiple of {2 * axes}, "
            f"got {dim_head}"
        )
    count = dim_head // (2 * axes)
    return theta ** (-torch.arange(count, dtype=torch.float64) / count)


def turns(angles: Float[Tensor, "*s f"]) -> Float[Tensor, "*s f 2"]:
    """Give the rotations by some angles: cosine and sine."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Float[Tensor, "b h n e"], rotation: Float[Tensor, "*s n f 2"]) -> Float[Tensor, "b h n e"]:
    """Turn each pair of channels of queries or keys, in single precision at least.

    Args:
        x: queries or keys; channels 2 i and 2 i + 1 are a pair.
        rotation: cosines and sines, which broadcast to the heads.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    pairs, rotation = x.unflatten(-1, (-1, 2)).to(dtype), rotation.to(dtype)
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        # One kernel, several times as fast; compilers do without complex numbers.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(x.dtype)


def _stand_still(rotation: Float[Tensor, "*h n f 2"], prefix: int) -> Float[Tensor, "*h m f 2"]:
    """Put rotations by nothing in front, for prefix tokens."""
    if not prefix:
        return rotation
    still = turns(torch.zeros_like(rotation[..., :prefix, :, 0]))
    return torch.cat([still, rotation], dim=-3)


class AxialRotary(nn.Module):
    """Rotations by fixed frequencies, each pair of channels along one axis (RoPE-Axial, arXiv:2403.13298).

    The pairs of the last axis come first: x, then y. The table is computed once.

    Args:
        grid: cells along each axis, of the largest input.
        dim_head: width of a head, a multiple of twice the axes.
        theta: the inverse of the frequency that would come after the last.

    Raises:
        ValueError: where the width of a head does not divide.
    """

    table: Tensor

    def __init__(self, grid: Sequence[int], dim_head: int, *, theta: float = 100.0) -> None:
        super().__init__()
        self.grid = tuple(grid)
        frequency = frequencies(dim_head, len(grid), theta)
        angles = cells(grid).flip(-1)[..., None] * frequency
        self.register_buffer("table", turns(angles.flatten(1)).float(), persistent=False)

    def context(
        self, grid: Sequence[int], prefix: int = 0, kept: Int[Tensor, "b k"] | None = None
    ) -> tuple[Any, ...]:
        """Give what every block is handed: the rotation of each token.

        Args:
            grid: patches along each axis.
            prefix: tokens in front, which are not turned.
            kept: places in the grid of the patches that are among the tokens; all of them unless told.
        """
        rotation = crop_cells(self.table, self.grid, grid, dim=0)
        if kept is not None:
            rotation = rotation[kept]
        return (_stand_still(rotation.unsqueeze(-4), prefix),)


class MixedRotary(CachedBias):
    """Rotations by learned frequencies along all axes at once, of each layer, head and pair of channels.

    RoPE-Mixed, arXiv:2403.13298, section 3.2. The pairs of a head start in the directions of a
    coordinate system that is turned at random, with the frequencies of `frequencies` along each.

    Args:
        grid: cells along each axis, of the largest input.
        dim_head: width of a head, a multiple of twice the axes.
        heads: number of heads.
        depth: number of layers.
        theta: the inverse of the frequency that would come after the last.

    Raises:
        ValueError: where the width of a head does not divide.
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
        self.register_buffer("places", cells(grid).flip(-1), persistent=False)

    def compute(self, *window: int) -> Float[Tensor, "l h n f 2"]:
        """Compute the rotations of all layers, for a grid of so many cells along each axis."""
        freqs = self.freqs.to(torch.promote_types(self.freqs.dtype, torch.float32))
        places = crop_cells(self.places, self.grid, window, dim=0).to(freqs)
        angles = (places.T[:, None, None, :, None] * freqs.unsqueeze(-2)).sum(dim=0)
        return turns(angles)

    def context(
        self, grid: Sequence[int], prefix: int = 0, kept: Int[Tensor, "b k"] | None = None
    ) -> tuple[Any, ...]:
        """Give what every block is handed: the rotations of all layers, and the places of the tokens.

        Args:
            grid: patches along each axis.
            prefix: tokens in front, which are not turned.
            kept: places in the grid of the patches that are among the tokens; all of them unless told.
        """
        rotations = _stand_still(self(*grid), prefix)
        return (rotations,) if kept is None else (rotations, places_of(kept, prefix))


def _directions(count: int, axes: int) -> Float[Tensor, "k p a"]:
    """Draw so many rotations of n-dimensional space, uniformly; their rows are directions."""
    drawn, triangle = torch.linalg.qr(torch.randn(count, axes, axes))
    drawn = drawn * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    mirrored = torch.linalg.det(drawn).sign()
    drawn[:, 0] *= mirrored[:, None]
    return drawn


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by their places.

    Args:
        layer: which of the rotations that are handed over is this layer's; None where all layers share one.
        arguments: see `Attention`.
    """

    def __init__(self, *arguments: Any, layer: int | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.layer = layer

    def relate(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n f"],
        rotation: Tensor | None = None,
        places: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b h n f"]:
        """Turn queries and keys, and attend.

        Args:
            q: queries.
            k: keys.
            v: values.
            rotation: cosines and sines of each token, or of each layer, head and place; nothing is turned
                without them.
            places: places of the tokens in `rotation`; they are in order unless told.
        """
        if rotation is None:
            return self.attend(q, k, v)
        if self.layer is not None:
            rotation = rotation[self.layer]
        if places is not None:
            rotation = rotation[:, places].transpose(0, 1)
        return self.attend(rotate(q, rotation), rotate(k, rotation), v)
