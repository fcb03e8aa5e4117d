"""Images at their own aspect ratio, for models that take images of different sizes at once."""

from __future__ import annotations

from math import sqrt
from typing import Any

from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


def fit_tokens(
    size: tuple[int, int], *, patch: tuple[int, int], largest: tuple[int, int], max_tokens: int
) -> tuple[int, int]:
    """Return the size at which an image is cut into whole patches, within a number of tokens.

    The aspect ratio is kept as far as whole patches allow, and nothing is enlarged but to fill a patch.

    Args:
        size: height and width of the image.
        patch: height and width of a patch.
        largest: what height and width may be at most.
        max_tokens: patches of an image at most.
    """
    height, width = size
    factor = min(
        1.0,
        sqrt(max_tokens * patch[0] * patch[1] / (height * width)),
        largest[0] / height,
        largest[1] / width,
    )
    rows = min(max(1, round(height * factor / patch[0])), max_tokens, largest[0] // patch[0])
    columns = min(max(1, round(width * factor / patch[1])), max_tokens, largest[1] // patch[1])
    # Both may have been rounded up; the longer side gives way.
    if rows * columns > max_tokens:
        if rows > columns:
            rows = max_tokens // columns
        else:
            columns = max_tokens // rows
    return rows * patch[0], columns * patch[1]


class FitTokens(v2.Transform):
    """Resize an image to whole patches, within a number of tokens (see `fit_tokens`)."""

    def __init__(
        self,
        *,
        patch: tuple[int, int],
        largest: tuple[int, int],
        max_tokens: int,
        mode: v2.InterpolationMode,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.largest = largest
        self.max_tokens = max_tokens
        self.mode = mode

    def forward(self, image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h2 w2"]:
        """Return the image at a size of its own."""
        height, width = image.shape[-2:]
        size = fit_tokens((height, width), patch=self.patch, largest=self.largest, max_tokens=self.max_tokens)
        if size == (height, width):
            return image
        return F.resize(image, list(size), interpolation=self.mode, antialias=True)


class RandomRegion(v2.RandomResizedCrop):
    """Cut out what a random resized crop would, and leave its size as it is."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut the region out."""
        return F.crop(inpt, **params)
