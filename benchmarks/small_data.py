"""Small data and a plain loop, for benchmarks that train: digits, and a part of Fashion-MNIST."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_pytorch.data import ArrayImages, ImageDataset, open_data
from vit_pytorch.training.optim import OptimizerConfig, make_optimizer


class Data(NamedTuple):
    """Images in [-1, 1] and labels, to train on and to test on."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[-1]


def read_data(source: str, size: int, *, train: int | None = None, test: int | None = None) -> Data:
    """Read a data set of `vit train`, enlarged to a size.

    Args:
        source: `digits`, or `idx:FOLDER`.
        size: side of the images in pixels.
        train: images to train on, the first of an order drawn once; all of them unless told.
        test: likewise.
    """
    splits = open_data(source, seed=0)
    assert splits.test is not None
    return Data(*_read(splits.train, size, train), *_read(splits.test, size, test))


def train(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float,
    optimizer: str = "adamw",
    batch: int = 64,
    seed: int = 0,
    moved: bool = True,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train by an optimizer of `vit train`, with a warm-up of a tenth and a cosine.

    Args:
        model: what learns.
        loss: what is minimised, of images and labels.
        images: the images.
        labels: their classes.
        epochs: passes over them.
        lr: the highest learning rate.
        optimizer: its name; weights decay by 0.05.
        batch: images in a step; those that fill no batch are left out.
        seed: of the order and the moves.
        moved: whether each batch is moved by up to a twelfth.
        after: called after each step.
    """
    stepper = make_optimizer(model, OptimizerConfig(name=optimizer, lr=lr, weight_decay=0.05))  # type: ignore[arg-type]
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        stepper, lambda step: min(step / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    reach = max(images.shape[-1] // 12, 1) if moved else 0
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            value = loss(images[chosen].roll((down, right), dims=(2, 3)), labels[chosen])
            stepper.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            stepper.step()
            schedule.step()
            after()
    model.eval()


def learn_labels(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float,
    seed: int,
    optimizer: str = "adamw",
    batch: int = 64,
) -> None:
    """Train a classifier on the labels of a data set."""
    train(
        model,
        lambda images, labels: F.cross_entropy(model(images), labels),
        data.images,
        data.labels,
        epochs=epochs,
        lr=lr,
        optimizer=optimizer,
        batch=batch,
        seed=seed,
    )


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Measure a classifier, which is in eval afterwards."""
    right = [
        model.eval()(x).argmax(dim=1) == y for x, y in zip(images.split(256), labels.split(256), strict=True)
    ]
    return torch.cat(right).float().mean().item()


def _read(images: ImageDataset, size: int, count: int | None) -> tuple[Tensor, Tensor]:
    assert isinstance(images, ArrayImages)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    pixels = images.images[chosen].float() / 127.5 - 1
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    return pixels, images.labels[chosen].long()
