"""What a model's features are worth on labelled images, without training the model: probes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.data import ImageDataset, ImageLoader
from vit_pytorch.data.transforms import Images, move
from vit_pytorch.ssl.probes import knn_accuracy, linear_accuracy

if TYPE_CHECKING:
    # it imports Lightning, which commands that only use a model do without
    from vit_pytorch.data import ImageData

Probe = Literal["knn", "linear"]


class Labelled(NamedTuple):
    """Features of images, on the CPU.

    Args:
        features: One row an image.
        labels: Their classes.
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]

    @classmethod
    def join(cls, parts: Iterable[tuple[Tensor, Tensor]]) -> Labelled:
        """Join the features and labels of parts of the images."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))


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
    return Labelled.join(
        (features(move(images, device, dtype)).float().cpu(), labels) for images, labels in loader
    )


def embed_dataset(
    model: VisionModel, images: ImageDataset, data: ImageData, *, rank: int = 0, world_size: int = 1
) -> Labelled:
    """Compute what enters the classifier of images that are prepared and loaded as other data.

    Args:
        model: In eval mode; used on the device and in the precision that it has.
        images: The images.
        data: How they are prepared and loaded.
        rank: Index of the process, which computes its part of them.
        world_size: Number of processes.
    """
    loader = ImageLoader(
        images,
        data.preprocessing,
        None,
        batch_size=data.batch_size,
        num_classes=data.num_classes,
        rank=rank,
        world_size=world_size,
        workers=data.workers_for(images),
        worker_timeout=data.worker_timeout,
        on_bad=data.on_bad,
        bad=data.bad,
    )
    weight = next(model.parameters())
    return read_features(lambda batch: embed(model, batch), loader, weight.device, weight.dtype)


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
