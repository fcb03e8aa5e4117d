"""What a model's features are worth on labelled images, without training the model: probes."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.data import ImageDataset
from vit_pytorch.data.transforms import Images, move
from vit_pytorch.ssl.probes import knn_accuracy, linear_accuracy

Probe = Literal["knn", "linear"]


class Labelled(NamedTuple):
    """Features of images, on the CPU.

    Args:
        features: One row an image.
        labels: Their classes.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]


def embed(model: VisionModel, images: Images) -> Float[Tensor, "b d"]:
    """Compute what enters the classifier."""
    # models that take lists of images of different sizes say so in signatures of their own
    features: Any = model.forward_features
    return model.forward_head(features(images), pre_logits=True)


@torch.no_grad()
def read_features(
    features: Callable[[Images], Tensor],
    loader: Iterable[tuple[Images, Tensor]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Labelled:
    """Compute the features of all images of a loader.

    Args:
        features: Gives vectors (b, d) from images.
        loader: Gives batches of images and labels.
        device: Where the features are computed.
        dtype: What the model computes in.
    """
    found = [(features(cast(move(images, device), dtype)).float().cpu(), labels) for images, labels in loader]
    return Labelled(torch.cat([vectors for vectors, _ in found]), torch.cat([labels for _, labels in found]))


def cast(images: Images, dtype: torch.dtype) -> Images:
    """Return a batch of images in another precision."""
    return images.to(dtype) if isinstance(images, Tensor) else [image.to(dtype) for image in images]


def measure(probe: Probe, known: Labelled, asked: Labelled, *, neighbours: int = 20) -> float:
    """Measure how often a probe that knows some images is right about others.

    Args:
        probe: `knn` for nearest neighbours, `linear` for logistic regression.
        known: What the probe knows, or is fitted on.
        asked: What it is asked.
        neighbours: How many neighbours vote.

    Raises:
        ValueError: Where there are fewer images than neighbours.
    """
    if probe == "knn":
        return knn_accuracy(*known, *asked, neighbours=neighbours)
    return linear_accuracy(*known, *asked)


def spread_over(images: ImageDataset, most: int) -> ImageDataset:
    """Take so many images at most, spread evenly over all."""
    if len(images) <= most:
        return images
    return images.subset(torch.arange(most) * len(images) // most)
