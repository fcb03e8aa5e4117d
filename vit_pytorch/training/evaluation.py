"""Measuring a classifier on labelled images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vit_pytorch.data import Preprocessing
from vit_pytorch.data.transforms import Images, move
from vit_pytorch.training.nan_guard import NonFiniteError
from vit_pytorch.training.task import IGNORED, check_targets

MOST_WRONG = 25


@dataclass(frozen=True)
class Wrong:
    """An image that was classified wrongly.

    Args:
        image: Values 0 to 1, as the model saw it; of a clip or a volume the middle.
        true: Its class.
        predicted: The class that the model gave it.
        probability: What the model gave that class.
    """

    image: Float[Tensor, "c h w"]
    true: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """How a classifier did.

    Args:
        classes: Names of the classes.
        confusion: Number of images by true class (row) and predicted class (column).
        loss: Mean cross-entropy.
        wrong: The first images that were classified wrongly.
    """

    classes: tuple[str, ...]
    confusion: Int64[Tensor, "k k"]
    loss: float
    wrong: tuple[Wrong, ...]

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Part of the images that were classified correctly."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """The same for the images of each class; None where there are none."""
        totals, right = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return {
            name: hits / total if total else None
            for name, hits, total in zip(self.classes, right, totals, strict=True)
        }

    def as_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "loss": self.loss,
            "class_accuracy": self.class_accuracy,
            "confusion": self.confusion.tolist(),
        }


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loaders: Iterable[Iterable[tuple[Images, Tensor]]],
    classes: Sequence[str],
    preprocessing: Preprocessing,
) -> Evaluation:
    """Classify all images of some loaders and compare with their labels.

    Args:
        model: Gives logits; used on the device where it is, in eval mode.
        loaders: Give batches of images and labels; labels of -100 do not count.
        classes: Names of the classes.
        preprocessing: How the loaders prepared the images, to show them again.

    Raises:
        NonFiniteError: The model's outputs are not finite.
        ValueError: A label is not that of a class, or no label of a batch counts.
    """
    device = next(model.parameters()).device
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    count = len(classes)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    loss = 0.0
    wrong: list[Wrong] = []
    training = model.training
    model.eval()
    for images, labels in (batch for loader in loaders for batch in loader):
        check_targets(labels, count)
        counted = labels != IGNORED
        logits = check_outputs(model(move(images, device))).float().cpu()[counted]
        shown, labels = counted.nonzero().flatten().tolist(), labels[counted]
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        probabilities, predicted = logits.softmax(dim=1).max(dim=1)
        confusion += torch.bincount(labels * count + predicted, minlength=count**2).view(count, count)
        for i in (predicted != labels).nonzero().flatten().tolist()[: MOST_WRONG - len(wrong)]:
            image = images[shown[i]]
            if preprocessing.frames is not None:
                image = image[:, preprocessing.frames // 2]
            image = (image * std + mean).clamp(0, 1)
            wrong.append(Wrong(image, int(labels[i]), int(predicted[i]), float(probabilities[i])))
    model.train(training)
    return Evaluation(tuple(classes), confusion, loss / int(confusion.sum()), tuple(wrong))


def check_outputs(logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return logits as they are, if they are finite.

    Raises:
        NonFiniteError: They are not, and probabilities of them would mean nothing.
    """
    bad = int((~logits.isfinite().all(dim=1)).sum())
    if bad:
        raise NonFiniteError(
            f"the model's outputs are not finite for {bad} of {len(logits)} inputs: its weights are too "
            "large for their number format, or damaged"
        )
    return logits
