"""The worker's side of loading: a request in, a finished batch out."""

import os
from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vit_pytorch.data.arrays import scale
from vit_pytorch.data.batched import BatchAugment
from vit_pytorch.data.datasets import ArrayImages, ImageDataset, convert_channels
from vit_pytorch.data.decode import BadImageError
from vit_pytorch.data.plan import BatchRequest
from vit_pytorch.data.seeding import generator_for, seeded
from vit_pytorch.data.transforms import (
    AsStored,
    Augmentation,
    Images,
    Preparation,
    mix_transform,
)
from vit_pytorch.preprocessing import Preprocessing, eval_transform


class LoadingError(RuntimeError):
    """A worker that loads images has died, hangs, or failed in a way that is not the image's."""


class Batch(NamedTuple):
    """What a worker answers.

    Args:
        images: The model's input, in the memory format that convolutions are fastest with; a list where
            images differ in size.
        labels: Classes, or probabilities of classes where images are mixed.
        bad: Name and fault of each image that is left out because it cannot be decoded.
    """

    images: Images
    labels: Shaped[Tensor, "b *k"]
    bad: tuple[tuple[str, str], ...] = ()


class BatchReader(Dataset[Batch]):
    """Reads, augments and mixes the images of a request.

    How an image is augmented is a function of (seed, epoch, index), how a batch is mixed one of (seed, epoch,
    batch). Images in memory are augmented together where that is possible, others one by one.

    Args:
        images: Where the requested indices point.
        prep: The model's input.
        augmentation: None for evaluation.
        num_classes: Length of the probabilities where images are mixed.
        seed: Of all randomness.
        reading: Shared memory; before worker w reads an image, row w becomes (process id, index of the
            image).
    """

    def __init__(
        self,
        images: ImageDataset,
        prep: Preprocessing,
        augmentation: Augmentation | None,
        *,
        num_classes: int,
        seed: int,
        reading: Int64[Tensor, "w 2"],
    ) -> None:
        self.images = images
        self.prep = prep
        self.seed = seed
        self.reading = reading
        one_by_one = prep.max_tokens is not None or (
            augmentation is not None and augmentation.color_jitter > 0
        )
        self.together = isinstance(images, ArrayImages) and not one_by_one
        self.augmented = augmentation is not None
        self.varies = images.varies and self.augmented
        self.mix = mix_transform(augmentation, num_classes) if augmentation else None
        self.transform = eval_transform(prep)
        self.preparation: Preparation | AsStored = Preparation(prep, augmentation)
        self.augment = BatchAugment(prep, augmentation) if augmentation and self.together else None
        self._draws: tuple[int, Float[Tensor, "n k"]] = (-1, torch.empty(0))

    def __getitem__(self, request: BatchRequest) -> Batch:
        batch = self._read_together(request) if self.together else self._read_singly(request)
        images, labels = batch.images, batch.labels
        if not isinstance(images, Tensor):
            assert self.mix is None, "images of different sizes are not mixed"
            return batch
        if self.mix is not None and len(images):
            with seeded(self.seed, request.epoch, request.batch):
                images, labels = self.mix(images, labels)
        return Batch(channels_last(images), labels, batch.bad)

    def _read_together(self, request: BatchRequest) -> Batch:
        assert isinstance(self.images, ArrayImages), "only images in memory are read together"
        chosen = torch.tensor(request.indices)
        self._note(request.indices[0])
        images = convert_channels(scale(self.images.images[chosen], self.prep.window), self.prep.channels)
        if self.augment is None:
            return Batch(self.transform(images), self.images.labels[chosen])
        draws = self._draw(request.epoch, self.augment.draws)[chosen]
        return Batch(self.augment(images, draws), self.images.labels[chosen])

    def _draw(self, epoch: int, count: int) -> Float[Tensor, "n k"]:
        """Random numbers for every image of an epoch, kept until the next."""
        if self._draws[0] != epoch:
            # The third key keeps this stream apart from the one that shuffles the epoch.
            generator = generator_for(self.seed, epoch, len(self.images))
            self._draws = (epoch, torch.rand(len(self.images), count, generator=generator))
        return self._draws[1]

    def _read_singly(self, request: BatchRequest) -> Batch:
        images: list[Tensor] = []
        kept: list[int] = []
        bad: list[tuple[str, str]] = []
        for index in request.indices:
            self._note(index)
            # the fourth key keeps this stream apart from that of the transforms
            draw = generator_for(self.seed, request.epoch, index, 1) if self.varies else None
            try:
                image = self.images.look(index, self.prep, draw)
            except BadImageError as error:
                bad.append((error.name, error.reason))
                continue
            except FileNotFoundError:
                bad.append((self.images.name(index), "it has gone since it was listed"))
                continue
            except (Exception, SystemExit) as error:
                # SystemExit, too, which would end the worker, or training, without a word
                name = self.images.name(index)
                what = " ".join(f"{type(error).__name__}: {error}".split())
                raise LoadingError(f"reading {name} failed: {what}") from error
            with seeded(self.seed, request.epoch, index) if self.augmented else nullcontext():
                images.append(self.preparation.single(image))
            kept.append(index)
        return Batch(self.preparation.collate(images), self.images.labels[kept], tuple(bad))

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id, 0] = os.getpid()
            self.reading[worker.id, 1] = index


def channels_last(images: Float[Tensor, "b c *t h w"]) -> Float[Tensor, "b c *t h w"]:
    """Return images in the memory format that convolutions are fastest with; clips contiguous."""
    if images.ndim != 4:
        return images.contiguous()
    _, channels, height, width = images.shape
    if channels == 1:
        # the same memory in both formats; convolutions tell them by the strides
        return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))
    return images.contiguous(memory_format=torch.channels_last)
