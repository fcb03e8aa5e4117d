"""Cutting an n-D array into patches, and embedding them.

One description serves signals (1-D), images (2-D), videos and volumes (3-D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import log2, prod

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CONV: dict[int, Callable[..., Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


AXES = ("frames", "height", "width")


def to_ntuple(size: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Read the size of an array of one to three axes, given as one number for all or one for each."""
    if isinstance(size, int):
        return (size,) * rank
    if len(size) != rank:
        raise ValueError(f"a size is one number or ({', '.join(AXES[-rank:])}), got {tuple(size)}")
    return tuple(size)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Read a size given as one number, for a square, or as (height, width)."""
    height, width = to_ntuple(size, 2)
    return height, width


@dataclass(frozen=True)
class PatchGrid:
    """The grid of patches that an array of at most `size` is cut into.

    Args:
        size: extent of the array along each axis, in pixels (frames for time).
        patch: extent of a patch along each axis; divides `size`.

    Raises:
        ValueError: where a patch does not divide the size, or the two differ in rank.
    """

    size: tuple[int, ...]
    patch: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.size) != len(self.patch):
            raise ValueError(f"image size {self.size} and patch size {self.patch} differ in rank")
        if min(self.size) < 1 or min(self.patch) < 1:
            raise ValueError(f"sizes are at least 1, got image size {self.size} and patch size {self.patch}")
        self._check_divides(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Patches along each axis, at the largest input."""
        return tuple(s // p for s, p in zip(self.size, self.patch, strict=True))

    @property
    def num_patches(self) -> int:
        """Patches of the largest input."""
        return prod(self.shape)

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Give the grid of an input of this size.

        Raises:
            ValueError: where the input is empty or larger than the grid, or the patch does not divide it.
        """
        if min(size) < 1:
            raise ValueError(f"an image is at least {self.patch}, got image size {tuple(size)}")
        if any(s > largest for s, largest in zip(size, self.size, strict=True)):
            raise ValueError(
                f"image size {tuple(size)} exceeds the largest that the model takes, {self.size}"
            )
        self._check_divides(size)
        return tuple(s // p for s, p in zip(size, self.patch, strict=True))

    def patchify(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch to a vector in the order (axes of the patch …, channel)."""
        grid = self.fit(x.shape[2:])
        axes = range(len(grid))
        x = x.reshape(x.shape[0], x.shape[1], *chain(*zip(grid, self.patch, strict=True)))
        x = x.permute(0, *(2 + 2 * i for i in axes), *(3 + 2 * i for i in axes), 1)
        return x.reshape(x.shape[0], prod(grid), -1)

    def unpatchify(
        self, patches: Float[Tensor, "b n p"], grid: Sequence[int] | None = None
    ) -> Float[Tensor, "b c *size"]:
        """Put flattened patches back in their places; the inverse of `patchify`.

        Args:
            patches: vectors in the order (axes of the patch …, channel).
            grid: patches along each axis; that of the largest input unless told.
        """
        grid = self.shape if grid is None else tuple(grid)
        if prod(grid) != patches.shape[1]:
            raise ValueError(f"a grid of {grid} has {prod(grid)} patches, got {patches.shape[1]}")
        rank = len(grid)
        x = patches.reshape(patches.shape[0], *grid, *self.patch, -1)
        x = x.permute(0, 1 + 2 * rank, *chain(*((1 + i, 1 + rank + i) for i in range(rank))))
        return x.reshape(*x.shape[:2], *(g * p for g, p in zip(grid, self.patch, strict=True)))

    def _check_divides(self, size: Sequence[int]) -> None:
        if any(s % p for s, p in zip(size, self.patch, strict=True)):
            raise ValueError(f"image size {tuple(size)} is not a multiple of patch size {self.patch}")


class PatchEmbed(nn.Module):
    """Project each patch linearly to the model's width (ViT, equation 1).

    The projection is stored as the convolution that it equals, kernel and stride being the patch; it
    starts with variance 1 / fan-in.

    Args:
        grid: how the input is cut.
        channels: channels of the input.
        dim: width of a token.
        norm_eps: where given, a LayerNorm stands before and after the projection (Dual PatchNorm,
            arXiv:2302.01327), with this epsilon.
        bias: whether the projection has a bias.
    """

    def __init__(
        self, grid: PatchGrid, channels: int, dim: int, *, norm_eps: float | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.grid = grid
        self.proj = CONV[len(grid.patch)](channels, dim, grid.patch, grid.patch, bias=bias)
        self.norm_in: nn.LayerNorm | None = None
        self.norm_out: nn.LayerNorm | None = None
        if norm_eps is not None:
            self.norm_in = nn.LayerNorm(channels * prod(grid.patch), eps=norm_eps)
            self.norm_out = nn.LayerNorm(dim, eps=norm_eps)
        nn.init.trunc_normal_(self.proj.weight, std=(channels * prod(grid.patch)) ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        if self.norm_in is None:
            return self.proj(x).flatten(2).transpose(1, 2)
        return self.project(self.grid.patchify(x))

    def project(self, patches: Float[Tensor, "*b p"]) -> Float[Tensor, "*b d"]:
        """Embed patches that are flattened already, as `PatchGrid.patchify` does."""
        weight = self.proj.weight.movedim(1, -1).flatten(1)
        if self.norm_in is None or self.norm_out is None:
            return F.linear(patches, weight, self.proj.bias)
        return self.norm_out(F.linear(self.norm_in(patches), weight, self.proj.bias))


class ConvStem(nn.Module):
    """Embed patches with a stack of 3 x 3 convolutions instead of one large one.

    Halves the map until a cell is a patch, then projects by 1 x 1 (Xiao et al. 2021, arXiv:2106.14881,
    section 3.1). A patch of 1 keeps the size and has two convolutions of stride 1.

    Args:
        grid: how the input is cut; 2-D, its patch square and a power of two.
        channels: channels of the input.
        dim: width of a token. Channels double up to `dim` with each convolution.
        project: whether the 1 x 1 projection stands at the end; without it the last convolution gives
            the tokens, and no activation follows it.
    """

    def __init__(self, grid: PatchGrid, channels: int, dim: int, *, project: bool = True) -> None:
        super().__init__()
        patch = grid.patch[0]
        if len(grid.patch) != 2 or grid.patch[1] != patch or patch & (patch - 1):
            raise ValueError(f"a convolutional stem needs a square patch, a power of two; got {grid.patch}")
        self.grid = grid
        strides = [2] * int(log2(patch)) or [1, 1]
        widths = [channels, *(max(dim >> i, min(dim, 8)) for i in reversed(range(len(strides))))]
        layers: list[nn.Module] = []
        for stride, before, after in zip(strides, widths, widths[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.GELU(),
            ]
        self.convs = nn.Sequential(*(layers if project else layers[:-1]))
        self.proj = nn.Conv2d(dim, dim, 1) if project else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid."""
        return self.proj(self.convs(x)).flatten(2).transpose(1, 2)
