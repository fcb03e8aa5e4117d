"""Pretraining a small model on the digits without their labels, and what its features are worth."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tests.papers.learning import digits, learn
from vit_pytorch.ssl.probes import extract, knn_accuracy

SIZE = 20


def knn_on_digits(features: Callable[[Tensor], Tensor]) -> float:
    """Classify the test digits by their neighbours among the others; give the accuracy."""
    images, labels, test_images, test_labels = digits(SIZE)
    return knn_accuracy(extract(features, images), labels, extract(features, test_images), test_labels)


def pretrain_on_digits(method: nn.Module, *, epochs: int, lr: float = 5e-3) -> list[float]:
    """Let a method learn from the training images; give the loss of every step."""
    losses = []

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        value = method(images)
        losses.append(value.item())
        return value

    images, labels, *_ = digits(SIZE)
    learn(method, loss, images, labels, epochs=epochs, lr=lr)
    method.eval()
    return losses
