"""A plain loop that trains a small model on scikit-learn's digits, for tests that a model learns."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from vit_pytorch.training.optim import HasUnitWeights, normalize_after_steps


def digits(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give images and labels to train on, then to test on: grey, enlarged to `size`, in [-1, 1]."""
    data, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(data).float().view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    labels = torch.from_numpy(labels)
    return images[train], labels[train], images[test], labels[test]


def accuracy_on_digits(
    model: nn.Module, *, size: int, epochs: int, goal: float = 1.0, lr: float = 3e-3, batch: int = 64
) -> float:
    """Train on the digits by labels; give the test accuracy.

    Training ends early where a goal is passed with a quarter fewer errors than it allows: an early end is not
    the easier test.
    """
    images, labels, test_images, test_labels = digits(size)

    def loss(batch: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(batch), targets)

    def arrived() -> bool:
        return accuracy(model, test_images, test_labels) > goal + (1 - goal) / 4

    learn(model, loss, images, labels, epochs=epochs, lr=lr, batch=batch, arrived=arrived)
    return accuracy(model, test_images, test_labels)


def learn(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    lr: float = 3e-3,
    batch: int = 64,
    seed: int = 0,
    arrived: Callable[[], bool] = lambda: False,
) -> None:
    """Train by AdamW with warm-up and cosine, each batch moved by up to a twelfth.

    `arrived` is asked after each epoch but those of the first third whether that is enough.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    if isinstance(model, HasUnitWeights):
        normalize_after_steps(optimizer, model)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    reach = max(images.shape[-1] // 12, 1)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            value = loss(images[chosen].roll((down, right), dims=(-2, -1)), labels[chosen])
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if 3 * epoch >= epochs and arrived():
            return


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Measure a classifier."""
    return (model.eval()(images).argmax(dim=1) == labels).float().mean().item()
