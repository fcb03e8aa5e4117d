"""Where tokens lie: from what is known of tokens to maps on the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.options import check_choice

# The map of one attention, (b heads queries keys); those of a model's layers may differ in all but the batch.
Map = Float[Tensor, "b _ _ _"]
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class TokenLayout:
    """How the tokens of a model of one sequence lie on the image: prefix tokens, then a grid of patches.

    Args:
        grid: patches along each axis; row-major order.
        patch: distance of two patches along each axis, in pixels (frames for time).
        prefix: number of tokens in front of the patches.
        class_token: whether the first of them is what is classified.
    """

    grid: tuple[int, ...]
    patch: tuple[int, ...]
    prefix: int = 0
    class_token: bool = False

    @classmethod
    def of(cls, model: nn.Module, images: Float[Tensor, "b c *size"]) -> TokenLayout:
        """Read the layout of a model's tokens, for images of this size.

        Raises:
            ValueError: where the model is not one sequence of tokens on one grid.
        """
        if not isinstance(model, IsotropicModel):
            raise ValueError(
                "expected a model of one sequence of tokens on one grid (a IsotropicModel), "
                f"got a {type(model).__name__}"
            )
        grid = model.grid.fit(images.shape[2:])
        return cls(grid, model.grid.patch, model.num_prefix_tokens, model.pool == "cls")

    @property
    def num_patches(self) -> int:
        """Number of patches."""
        return prod(self.grid)

    def on_grid(self, values: Float[Tensor, "*b n"]) -> Float[Tensor, ...]:
        """Leave the prefix tokens out and put the rest in their places on the grid.

        Args:
            values: a number for each token, or for each patch alone.

        Raises:
            ValueError: where there are neither as many numbers as tokens nor as many as patches.
        """
        count, tokens = values.shape[-1], self.num_patches
        if count not in (tokens, tokens + self.prefix):
            raise ValueError(
                f"expected the {tokens} patches of a grid of {self.grid}, or {self.prefix} prefix tokens in "
                f"front of them, got {count} tokens"
            )
        return values[..., count - tokens :].unflatten(-1, self.grid)


def upsample(values: Float[Tensor, ...], size: Sequence[int], mode: str = "linear") -> Float[Tensor, ...]:
    """Enlarge maps on a grid to the image; the cells' centres are the centres of the patches.

    Args:
        values: maps (... grid) of as many axes as the image has, any axes in front.
        size: the image's, in pixels (frames for time).
        mode: "linear" interpolates along each axis (bilinear on images, trilinear on videos), "nearest"
            repeats.
    """
    check_choice("mode", mode, ("linear", "nearest"))
    rank = len(size)
    if not 1 <= rank <= min(3, values.ndim):
        raise ValueError(f"expected maps of 1 to 3 axes and more, got {rank} of shape {tuple(values.shape)}")
    front, grid = values.shape[: values.ndim - rank], values.shape[values.ndim - rank :]
    cells = values.reshape(1, -1, *grid)
    if mode == "linear":
        large = F.interpolate(cells, tuple(size), mode=LINEAR[rank], align_corners=False)
    else:
        large = F.interpolate(cells, tuple(size), mode="nearest-exact")
    return large.reshape(*front, *size)


def to_pictures(model: VisionModel, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
    """Undo the normalisation by the model's mean and standard deviation: values in [0, 1], to be drawn."""
    shape = (-1, *[1] * (images.ndim - 2))
    mean, std = (images.new_tensor(model.default_cfg[name]).view(shape) for name in ("mean", "std"))
    return (images * std + mean).clamp(0, 1)


def in_single(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Return half-precision numbers in single precision, others as they are; products of layers need
    digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
