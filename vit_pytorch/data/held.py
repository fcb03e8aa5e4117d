"""Small images of files, read once and held in memory, where they are augmented a batch at a time."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import BinaryIO

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vit_pytorch.data.datasets import ArrayImages, ImageDataset
from vit_pytorch.data.sizes import SMALL, typical_size
from vit_pytorch.data.transforms import Images
from vit_pytorch.preprocessing import Preprocessing

# of all images of a split, unless it is asked for
MOST_BYTES = 1 << 29


class HeldImages(ArrayImages):
    """Images that have been read from where they are stored, and are otherwise those of their source.

    Args:
        images: Values 0 to 255, in the channels that the model takes.
        source: Where they were read.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"], source: ImageDataset) -> None:
        super().__init__(images, source.labels, origin=source.root)
        self.source = source

    def name(self, index: int) -> str:
        """Return the path, or place, of one image."""
        return self.source.name(index)

    def stored(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open the file, or what else holds one image."""
        return self.source.stored(index)

    def stored_bytes(self) -> int:
        """Return how many bytes the source is stored in."""
        return self.source.stored_bytes()

    def subset(self, indices: Int64[Tensor, "m"]) -> "HeldImages":
        """Return the images at these indices, in this order."""
        return HeldImages(self.images[indices], self.source.subset(indices))


def check_holdable(images: ImageDataset, prep: Preprocessing) -> None:
    """Check that images can be held in memory for a model.

    Raises:
        ValueError: They are no pictures of one size, or of more than 8 bits with a window, or not listed.
    """
    if not images.listed or images.axes != 2:
        raise ValueError(f"only images that are listed can be held in memory, not {images.kind}s of a stream")
    if prep.max_tokens is not None:
        raise ValueError("data.in_memory needs images of one size, but with data.max_tokens they differ")
    if prep.window is not None:
        raise ValueError("data.in_memory needs images of 8 bits, without data.window")


def are_small(images: ImageDataset, prep: Preprocessing) -> bool:
    """Return whether images are so small that holding them costs little and saves much.

    The model's input has at most 64 pixels a side, no image of a few that are looked at is larger than it,
    and together they take at most 512 MiB.
    """
    if max(prep.image_size) > SMALL:
        return False
    size = typical_size(images)
    if size is None or any(own > most for own, most in zip(size, prep.image_size, strict=True)):
        return False
    return len(images) * prep.channels * size[0] * size[1] <= MOST_BYTES


def hold(images: ImageDataset, batches: Iterable[Images]) -> HeldImages | None:
    """Read images into memory.

    Args:
        images: What is read.
        batches: All of them in order, as they are stored.

    Returns:
        The images; None where they differ in size.
    """
    pixels: UInt8[Tensor, "n c h w"] | None = None
    done = 0
    for batch in batches:
        if not isinstance(batch, Tensor):
            return None
        if pixels is None:
            pixels = torch.empty(len(images), *batch.shape[1:], dtype=torch.uint8)
        if batch.shape[1:] != pixels.shape[1:]:
            return None
        pixels[done : done + len(batch)] = batch
        done += len(batch)
    assert pixels is not None, "a split has images"
    return HeldImages(pixels, images)
