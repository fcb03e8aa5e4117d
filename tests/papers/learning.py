"""A plain loop that trains a small model on scikit-learn's digits, for tests that a model learns."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


def digits(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give images and labels to train on, then to test on: grey, enlarged to `size`, in [-1, 1]."""
    data, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(data).float().view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    labels = torch.from_numpy(labels)
    return images[train], labels[train], images[test], labels[test]


def accuracy_on_digits(
    model: nn.Module, *, size: int, epochs: int, lr: float = 3e-3, batch: int = 64
) -> float:
    """Train by AdamW with warm-up and cosine, each image moved by up to a twelfth; give the test accuracy."""
    images, labels, test_images, test_labels = digits(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / (0.1 * steps), 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(0)
    reach = max(size // 12, 1)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            down, right = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            logits = model(images[chosen].roll((down, right), dims=(2, 3)))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[chosen]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        return (model(test_images).argmax(dim=1) == test_labels).float().mean().item()
