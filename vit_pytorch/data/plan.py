"""Which images make up which batch, for every epoch and rank."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from vit_pytorch.data.datasets import ImageDataset
from vit_pytorch.data.seeding import generator_for
from vit_pytorch.layers.arguments import check_integer


@dataclass(frozen=True)
class BatchRequest:
    """One batch of one rank.

    Args:
        epoch: Counts from 0.
        batch: Number of the batch in its epoch, from 0.
        indices: The images.
    """

    epoch: int
    batch: int
    indices: list[int]


class BatchPlan:
    """The batches of one rank, in order.

    In training, the images of an epoch are shuffled by (seed, epoch) and cut into global batches of
    ``batch_size * world_size``; rank r takes the r-th part of each, so that all ranks together see what one
    process would see. Images that do not fill a global batch are left out of that epoch, unless there would
    be none.

    In evaluation, every image occurs once: images keep their order and are spread over batches as evenly as
    possible, with as many batches on each rank (a collective operation in a step must find all ranks).

    Args:
        images: What is cut into batches.
        batch_size: Images of one rank in one batch. An evaluation batch has one more where the images are too
            few to give every rank as many batches otherwise.
        train: Whether to shuffle and drop, or to keep all in order.
        balanced: Whether to draw the images of an epoch of training with repetition, so that classes are
            equally frequent.
        seed: With the epoch it decides the order.
        rank: This process, of ``world_size``.
        world_size: Number of processes.

    Raises:
        ValueError: The batch size is not positive, or there are fewer images than processes.
    """

    def __init__(
        self,
        images: ImageDataset,
        *,
        batch_size: int,
        train: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        balanced: bool = False,
    ) -> None:
        if balanced and images.labels.ndim != 1:
            raise ValueError("balanced batches need one class for each image, got rows of targets")
        check_integer("batch_size", batch_size)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
        if len(images) < world_size:
            raise ValueError(f"each of {world_size} processes needs an image, got {len(images)} images")
        self.images = images
        self.train = train
        self.balanced = balanced
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.global_batch = batch_size * world_size
        self.epoch = 0
        if train:
            self.batches = max(1, len(images) // self.global_batch)
        else:
            self.batches = min(-(-len(images) // self.global_batch), len(images) // world_size)

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is iterated next; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[BatchRequest]:
        return self.requests(0)

    def requests(self, start: int) -> Iterator[BatchRequest]:
        """Yield the requests of the chosen epoch from batch number ``start`` on."""
        epoch = self.epoch
        if self.train:
            generator = generator_for(self.seed, epoch)
            order = (
                draw_balanced(self.images, generator) if self.balanced else self.images.shuffled(generator)
            )
            used = min(len(order), self.batches * self.global_batch) // self.world_size * self.world_size
        else:
            order, used = torch.arange(len(self.images)), len(self.images)
        bounds = _bounds(used, self.batches * self.world_size)
        for batch in range(start, self.batches):
            part = batch * self.world_size + self.rank
            yield BatchRequest(epoch, batch, order[bounds[part] : bounds[part + 1]].tolist())


def draw_balanced(images: ImageDataset, generator: torch.Generator) -> Int64[Tensor, "n"]:
    """Draw as many indices as there are images, with repetition: a class, then one of its images."""
    by_class = torch.argsort(images.labels, stable=True)
    _, counts = torch.unique_consecutive(images.labels[by_class], return_counts=True)
    classes = torch.randint(len(counts), (len(images),), generator=generator)
    shares = torch.rand(len(images), generator=generator, dtype=torch.float64)
    return by_class[(counts.cumsum(0) - counts)[classes] + (shares * counts[classes]).long()]


def _bounds(count: int, parts: int) -> list[int]:
    """Borders of parts as equal as possible."""
    return (torch.arange(parts + 1) * count // parts).tolist()
