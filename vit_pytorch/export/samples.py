"""The images on which an exported file is held against its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vit_pytorch.data import ImageDataset, decode_image, find_images
from vit_pytorch.export.job import ExportError
from vit_pytorch.preprocessing import Preprocessing, fit_size

RANDOM = "random"
Label = int | tuple[float, ...] | None


@dataclass(frozen=True)
class Samples:
    """Images at a model's size, not yet normalized.

    Args:
        source: what reports call them.
        labels: the class of each, or which of several labels it has (1) and has not (0); None where that is
            not known.
        read: reads one by its place.
    """

    source: str
    labels: Sequence[Label]
    read: Callable[[int], Shaped[Tensor, ...]]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def are_random(self) -> bool:
        """Whether these are no images but noise."""
        return self.source == RANDOM

    def batches(self, size: int) -> Iterator[tuple[Shaped[Tensor, "b ..."], list[Label]]]:
        """Yield batches with their labels: the first image alone, so that two sizes of a batch are tried."""
        for start, end in [(0, 1), *((i, i + size) for i in range(1, len(self), size))]:
            chosen = range(start, min(end, len(self)))
            yield torch.stack([self.read(i) for i in chosen]), [self.labels[i] for i in chosen]


def samples_from_dataset(images: ImageDataset, prep: Preprocessing, *, count: int, source: str) -> Samples:
    """Take images of a data set, spread evenly over it.

    Args:
        images: the data set.
        prep: the model's input.
        count: how many, at most.
        source: what reports call them.
    """
    chosen, fit = _spread(len(images), count), fit_size(prep)
    labels = [
        tuple(label) if isinstance(label, list) else None if label < 0 else label
        for label in images.labels[chosen].tolist()
    ]
    return Samples(source, labels, lambda i: fit(images.look(chosen[i], prep)))


def samples_from_files(path: str, classes: Sequence[str], prep: Preprocessing, *, count: int) -> Samples:
    """Take image files, spread evenly; a file's label is the class that its folder is called by.

    Args:
        path: a folder, searched at any depth, a file or a pattern.
        classes: names of the model's classes.
        prep: the model's input.
        count: how many, at most.

    Raises:
        FileNotFoundError: if the path names nothing.
        ValueError: if a folder holds no images.
    """
    if prep.frames is not None:
        raise ExportError(
            f"{path} holds images, and the model takes clips: name a source, such as video:{path}"
        )
    files = find_images([path])
    chosen, fit = [files[i] for i in _spread(len(files), count)], fit_size(prep)
    number = {name: index for index, name in enumerate(classes)}

    def read(i: int) -> Tensor:
        return fit(decode_image(chosen[i], channels=prep.channels, window=prep.window))

    return Samples(path, [number.get(Path(file).parent.name) for file in chosen], read)


def random_samples(prep: Preprocessing, count: int = 64) -> Samples:
    """Draw noise: bytes for images, floats for clips and volumes."""
    generator = torch.Generator().manual_seed(0)
    shape = (prep.channels, *prep.image_size)
    if prep.frames is not None:
        noise: Tensor = torch.rand(count, prep.frames, *shape, generator=generator)
    else:
        noise = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Samples(RANDOM, [None] * count, lambda i: noise[i])


def normalized_batches(
    samples: Samples, finish: Callable[[Tensor], Tensor], size: int
) -> list[Float[Tensor, "b c *size"]]:
    """Return batches of images as a graph takes them, without labels."""
    return [finish(images) for images, _ in samples.batches(size)]


def _spread(available: int, count: int) -> list[int]:
    """Return up to so many indices, evenly spread: data sets are often sorted by class."""
    if available <= count:
        return list(range(available))
    return [i * available // count for i in range(count)]
