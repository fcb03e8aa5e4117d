"""Measuring a trained model on labelled images: what each task counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vit_pytorch.data import Preprocessing
from vit_pytorch.data.record import few
from vit_pytorch.data.transforms import Images, move
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.preprocessing import Normalize
from vit_pytorch.training.losses import IGNORED, NonFiniteError

if TYPE_CHECKING:
    from vit_pytorch.training.problems import Problem

MOST_WRONG = 25
# classes up to which a confusion matrix is written whole; 2,000 would take 88 MB
MOST_CLASSES = 100
BINS = 15
# outputs, targets and images of a batch
Outputs = Iterable[tuple[Tensor, Tensor, Images]]
Table = tuple[list[str], list[list[str]]]


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
class ClassEvaluation:
    """How a classifier did.

    Args:
        classes: Names of the classes.
        confusion: Number of images by true class (row) and predicted class (column).
        loss: Mean cross-entropy.
        wrong: The first images that were classified wrongly.
        temperature: What divides the logits for calibrated probabilities; None where it is not known.
        reliability: From `count_by_confidence`, of probabilities as they are and of calibrated ones if any.
    """

    classes: tuple[str, ...]
    confusion: Int64[Tensor, "k k"]
    loss: float
    wrong: tuple[Wrong, ...] = field(default=(), repr=False)
    temperature: float | None = None
    reliability: tuple[Float[Tensor, "3 bins"], ...] = field(default=(), repr=False)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Part of the images that were classified correctly."""
        return float(self.confusion.diagonal().sum() / self.confusion.sum())

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that no image has."""
        return tuple(name for name, accuracy in self.class_accuracy.items() if accuracy is None)

    @property
    def class_accuracy(self) -> dict[str, float | None]:
        """The same for the images of each class; None where there are none."""
        totals, right = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        return {
            name: hits / total if total else None
            for name, hits, total in zip(self.classes, right, totals, strict=True)
        }

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the classes' accuracies, whatever their numbers of images; of classes that have some."""
        found = [value for value in self.class_accuracy.values() if value is not None]
        return sum(found) / len(found)

    @property
    def macro_f1(self) -> float:
        """Mean of the classes' F1, of classes that have images or were predicted."""
        right = self.confusion.diagonal().double()
        taken = (self.confusion.sum(0) + self.confusion.sum(1)).double()
        return float((2 * right / taken)[taken > 0].mean())

    @property
    def headline(self) -> str:
        """Accuracy, and what rare classes count as much in as others."""
        return (
            f"accuracy {self.accuracy:.2%}, balanced accuracy {self.balanced_accuracy:.2%}, "
            f"macro F1 {self.macro_f1:.2%} of {self.images}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON; of more than 100 classes `confusion_cells` for `confusion`."""
        errors = [*map(calibration_error, self.reliability), None, None]
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
            "absent": list(self.absent),
            "loss": self.loss,
            "calibration_error": errors[0],
            "calibrated_error": errors[1],
            "temperature": self.temperature,
            "class_accuracy": self.class_accuracy,
            **self._confusion_dict(),
        }

    def _confusion_dict(self) -> dict[str, Any]:
        """Return the confusion matrix: whole, or for many classes its cells that are not zero, as `[true,
        predicted, images]`."""
        if len(self.classes) <= MOST_CLASSES:
            return {"confusion": self.confusion.tolist()}
        cells = self.confusion.nonzero()
        counts = self.confusion[cells[:, 0], cells[:, 1]]
        return {"confusion_cells": torch.column_stack([cells, counts]).tolist()}

    def table(self, kind: str) -> Table:
        """Return the accuracy by class, and what each class was most often taken for."""
        wrong = self.confusion.clone().fill_diagonal_(0).max(dim=1)
        counts = (self.confusion.sum(1).tolist(), wrong.values.tolist(), wrong.indices.tolist())
        rows = [
            [name, str(total), _percent(accuracy), f"{self.classes[other]} ({count})" if count else ""]
            for (name, accuracy), total, count, other in zip(
                self.class_accuracy.items(), *counts, strict=True
            )
        ]
        return ["class", f"{kind}s", "accuracy", "most often taken for"], rows


@dataclass(frozen=True)
class LabelEvaluation:
    """How a model of several labels did.

    Args:
        labels: Names of the labels.
        thresholds: Probability from which on each label counts as predicted.
        scores: Probabilities (n, k).
        targets: 1 where an image has a label, 0 where not (n, k).
        loss: Mean over images of the binary cross entropies' sum over labels.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    scores: Float[Tensor, "n k"] = field(repr=False)
    targets: Float[Tensor, "n k"] = field(repr=False)
    loss: float

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.targets)

    @property
    def figures(self) -> dict[str, float | None]:
        """`map`, the mean of the labels' average precision; `f1` of all decisions together; `macro_f1`, the
        mean of the labels' F1. Of labels that no image has, F1 counts where they were predicted; None where
        no image has a label."""
        found = self.by_label().values()
        precisions = [value for each in found if (value := each["average_precision"]) is not None]
        scores = [value for each in found if (value := each["f1"]) is not None]
        if not precisions:
            return {"map": None, "f1": None, "macro_f1": None}
        true, decided = self.targets == 1, self._decided
        return {
            "map": sum(precisions) / len(precisions),
            "f1": 2 * int((true & decided).sum()) / int(true.sum() + decided.sum()),
            "macro_f1": sum(scores) / len(scores),
        }

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the labels that no image has."""
        present = (self.targets == 1).any(dim=0).tolist()
        return tuple(name for name, known in zip(self.labels, present, strict=True) if not known)

    @property
    def _decided(self) -> Bool[Tensor, "n k"]:
        return self.scores >= torch.tensor(self.thresholds).to(self.scores)

    @property
    def headline(self) -> str:
        """Mean average precision and F1."""
        found = {name: "none" if value is None else f"{value:.2%}" for name, value in self.figures.items()}
        return f"mAP {found['map']}, F1 {found['f1']}, macro F1 {found['macro_f1']} of {self.images}"

    def by_label(self) -> dict[str, dict[str, float | None]]:
        """Return the figures of each label; None for those that it takes images with the label to know, or
        for F1 such that have it or are said to."""
        from torchmetrics.functional.classification import binary_average_precision

        found: dict[str, dict[str, float | None]] = {}
        for i, (name, said) in enumerate(zip(self.labels, self._decided.unbind(dim=1), strict=True)):
            true = self.targets[:, i] == 1
            hits, present, predicted = int((true & said).sum()), int(true.sum()), int(said.sum())
            average = binary_average_precision(self.scores[:, i], true.int()) if present else None
            found[name] = {
                "images": present,
                "threshold": self.thresholds[i],
                "average_precision": None if average is None else float(average),
                "precision": hits / predicted if predicted else None,
                "recall": hits / present if present else None,
                "f1": 2 * hits / (present + predicted) if present + predicted else None,
            }
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {
            "images": self.images,
            **self.figures,
            "absent": list(self.absent),
            "loss": self.loss,
            "labels": self.by_label(),
        }

    def table(self, kind: str) -> Table:
        """Return the figures by label."""
        shown = ("average_precision", "precision", "recall", "f1")
        rows = [
            [
                name,
                str(found["images"]),
                f"{found['threshold']:.3f}",
                *(_percent(found[key]) for key in shown),
            ]
            for name, found in self.by_label().items()
        ]
        return ["label", f"{kind}s", "threshold", "average precision", *shown[1:3], "F1"], rows


@dataclass(frozen=True)
class ValueEvaluation:
    """How a model of values did.

    Args:
        names: Names of the values.
        predicted: What the model gave (n, k), in the units of the data.
        targets: The true values (n, k).
        loss: Mean squared error in standard deviations of the training images.
    """

    names: tuple[str, ...]
    predicted: Float[Tensor, "n k"] = field(repr=False)
    targets: Float[Tensor, "n k"] = field(repr=False)
    loss: float

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.targets)

    @property
    def headline(self) -> str:
        """Error and R² of each value."""
        found = [
            f"{name} MAE {each['mae']:.4g}, R² {'none' if each['r2'] is None else format(each['r2'], '.4f')}"
            for name, each in self.by_value().items()
        ]
        return f"{'; '.join(found)} of {self.images}"

    def by_value(self) -> dict[str, dict[str, float | None]]:
        """Return mean absolute error, root mean squared error and R² of each value."""
        return value_figures(self.names, self.predicted, self.targets)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, for JSON."""
        return {"images": self.images, "loss": self.loss, "values": self.by_value()}

    def table(self, kind: str) -> Table:
        """Return the figures by value."""
        rows = [
            [name, *("" if each[key] is None else f"{each[key]:.4g}" for key in ("mae", "rmse", "r2"))]
            for name, each in self.by_value().items()
        ]
        return ["value", "MAE", "RMSE", "R²"], rows


# each with `loss`, `images`, `headline`, `as_dict` and `table`
Evaluation = ClassEvaluation | LabelEvaluation | ValueEvaluation


def headline(result: Evaluation, kind: str) -> str:
    """Return the headline of results on images, videos or volumes, and what its means leave out."""
    text = f"{result.headline} {kind}s"
    if isinstance(result, ValueEvaluation) or not result.absent:
        return text
    whole = isinstance(result, ClassEvaluation)
    names, mean = ("classes", "balanced accuracy") if whole else ("labels", "mAP")
    return (
        f"{text} ({names} that no {kind} has, {few(list(map(repr, result.absent)))}; {mean} leaves them out, "
        "macro F1 those that were not predicted)"
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, loaders: Iterable[Iterable[Any]], problem: Problem, preprocessing: Preprocessing
) -> Evaluation:
    """Show all images of some loaders to a model and compare its outputs with their targets.

    Args:
        model: Used on the device where it is, in eval mode.
        loaders: Give batches of images and targets; classes of -100 do not count.
        problem: What the model's outputs mean.
        preprocessing: How the loaders prepared the images, to show them again.

    Raises:
        NonFiniteError: The model's outputs are not finite.
        ValueError: A target is none of the problem's, or no label of a batch counts.
    """
    with eval_mode(model):
        return problem.evaluate(outputs_of(model, loaders, problem), preprocessing)


@torch.no_grad()
def fit_problem(model: nn.Module, loaders: Iterable[Iterable[Any]], problem: Problem) -> Problem:
    """Return a problem with what is chosen on validation images, such as thresholds; see `evaluate`."""
    with eval_mode(model):
        return problem.fitted(outputs_of(model, loaders, problem))


def outputs_of(
    model: nn.Module, loaders: Iterable[Iterable[Any]], problem: Problem
) -> Iterator[tuple[Tensor, Tensor, Images]]:
    """Yield outputs, as `compute_outputs` gives them, targets and images of each batch."""
    for images, targets in (batch for loader in loaders for batch in loader):
        problem.check_targets(targets)
        yield compute_outputs(model, images), targets, images


def compute_outputs(model: nn.Module, images: Images) -> Float[Tensor, "b k"]:
    """Return a model's outputs, on the CPU and in single precision; see `check_outputs`."""
    return check_outputs(model(move(images, next(model.parameters()).device))).float().cpu()


def evaluate_classes(
    batches: Outputs,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    temperature: float | None = None,
) -> ClassEvaluation:
    """Compare logits with classes; see `evaluate`."""
    divisors = [1.0] if temperature is None else [1.0, temperature]
    reliability = torch.zeros(len(divisors), 3, BINS, dtype=torch.float64)
    normalize, count = Normalize(preprocessing), len(classes)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    loss = 0.0
    wrong: list[Wrong] = []
    for outputs, targets, images in batches:
        counted = targets != IGNORED
        # in double precision: the difference of two logits may be beyond the range of single
        logits, labels = outputs[counted].double(), targets[counted]
        shown = counted.nonzero().flatten().tolist()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        for counts, divisor in zip(reliability, divisors, strict=True):
            counts += count_by_confidence((logits / divisor).softmax(dim=1), labels)
        probabilities, predicted = logits.softmax(dim=1).max(dim=1)
        confusion.view(-1).index_add_(0, labels * count + predicted, torch.ones_like(labels))
        for i in (predicted != labels).nonzero().flatten().tolist()[: MOST_WRONG - len(wrong)]:
            image = images[shown[i]]
            if preprocessing.frames is not None:
                image = image[:, preprocessing.frames // 2]
            wrong.append(
                Wrong(normalize.invert(image), int(labels[i]), int(predicted[i]), float(probabilities[i]))
            )
    return ClassEvaluation(
        tuple(classes),
        confusion,
        loss / int(confusion.sum()),
        tuple(wrong),
        temperature,
        tuple(reliability),
    )


def count_by_confidence(
    probabilities: Float[Tensor, "b k"], labels: Int64[Tensor, " b"]
) -> Float[Tensor, "3 bins"]:
    """Count how often a classifier is right that says how sure it is, by bins of equal width from 0 to 1.

    Returns:
        The number of images by the probability of the class that the model gave, the sum of those
        probabilities, and the number of images that were classified correctly.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()])
    return torch.zeros(3, BINS, dtype=torch.float64).index_add_(
        1, (confidence * BINS).long().clamp(max=BINS - 1), values
    )


def calibration_error(counts: Float[Tensor, "3 bins"]) -> float:
    """Return the expected calibration error (ECE), the mean difference of probability and accuracy."""
    images, confidence, right = counts
    return float((confidence - right).abs().sum() / images.sum())


def fit_temperature(batches: Outputs) -> float | None:
    """Return the temperature with the least cross entropy (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    One pass measures it at steps from 0.05 to 20, on a scale of logarithms, and a parabola through the least
    one and its neighbours gives the minimum. Where the least one is the first or the last there is no
    minimum, as of a few images that are all right or a model that has learned nothing: then None.
    """
    steps = torch.linspace(math.log(0.05), math.log(20), 91, dtype=torch.float64)
    losses = torch.zeros_like(steps)
    for outputs, targets, _ in batches:
        for i, step in enumerate(steps.tolist()):
            losses[i] += F.cross_entropy(
                outputs.double() / math.exp(step), targets, ignore_index=IGNORED, reduction="sum"
            )
    best = int(losses.argmin())
    if best in (0, len(steps) - 1):
        return None
    left, middle, right = losses[best - 1 : best + 2].tolist()
    shift = (left - right) / (2 * (left - 2 * middle + right))
    return math.exp(float(steps[best] + shift * (steps[1] - steps[0])))


def join_batches(batches: Outputs) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Return all outputs and all targets, in double precision, in which squares of large ones are finite."""
    pairs = [(outputs.double(), targets.double()) for outputs, targets, _ in batches]
    return torch.cat([outputs for outputs, _ in pairs]), torch.cat([targets for _, targets in pairs])


def value_figures(
    names: Sequence[str], predicted: Float[Tensor, "n k"], targets: Float[Tensor, "n k"]
) -> dict[str, dict[str, float | None]]:
    """Measure predictions of values: `mae`, `rmse`, and `r2`, which is None where all targets are equal."""
    from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

    found: dict[str, dict[str, float | None]] = {}
    for i, name in enumerate(names):
        # in double precision: values such as years differ in their last digits only
        given, true = predicted[:, i].double(), targets[:, i].double()
        # torchmetrics' r2_score takes sums of squares below 1e-4 for zero and says 1 for small units
        spread = float((true - true.mean()).square().sum()) if bool((true != true[0]).any()) else 0.0
        found[name] = {
            "mae": float(mean_absolute_error(given, true)),
            "rmse": float(mean_squared_error(given, true, squared=False)),
            "r2": 1 - float((given - true).square().sum()) / spread if spread else None,
        }
    return found


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


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
