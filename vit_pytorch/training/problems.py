"""What a model's outputs mean: classes, several labels, or values.

Training, evaluation, prediction and saved models ask one object for what depends on the task: how targets
are checked and outputs become probabilities or values, which figures are measured, and how answers are
written.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vit_pytorch.data import ImageRecord, Preprocessing, Splits, TaskName
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.training.evaluation import (
    Evaluation,
    LabelEvaluation,
    Outputs,
    ValueEvaluation,
    evaluate_classes,
    fit_temperature,
    join_batches,
    value_figures,
)
from vit_pytorch.training.losses import IGNORED

# what a prediction says of an image, for JSON
Answer = dict[str, Any]


@dataclass(frozen=True)
class Problem(ABC):
    """What the outputs of a model mean.

    Args:
        names: Names of the outputs, in order: classes, labels or values.
    """

    names: tuple[str, ...]

    task: ClassVar[TaskName]
    # what an output stands for, and several of them
    noun: ClassVar[str]
    plural: ClassVar[str]

    @abstractmethod
    def check_targets(self, targets: Tensor) -> int:
        """Check a batch's targets and return how many of them count.

        Raises:
            ValueError: They are none of the problem's.
        """

    def normalize(self, targets: Tensor) -> Tensor:
        """Return targets as the loss takes them."""
        return targets

    @abstractmethod
    def scores(self, outputs: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return probabilities, or values in the units of the data, from a model's outputs."""

    @abstractmethod
    def evaluate(self, batches: Outputs, preprocessing: Preprocessing) -> Evaluation:
        """Compare outputs with targets; see `vit_pytorch.training.evaluation.evaluate`."""

    def fitted(self, batches: Outputs) -> Problem:
        """Return the problem with what is chosen on the outputs of validation images."""
        return self

    def calibrated(self) -> Problem:
        """Return the problem with calibrated probabilities.

        Raises:
            ValueError: There are none.
        """
        raise ValueError(
            f"calibrated probabilities are those of classes, and the model's task is {self.task}"
        )

    def settings(self) -> dict[str, Any]:
        """Return what a saved model keeps of the problem in addition to names, for JSON."""
        return {}

    def check_top(self, top: int | None) -> int:
        """Return how many outputs an answer lists, the highest first.

        Args:
            top: as many, or fewer where there are fewer; None for three.

        Raises:
            ValueError: It is no integer, less than 1, or the problem's answers list all outputs.
        """
        if top is not None:
            check_integer("top", top)
        return min(top or 3, len(self.names))

    def answer(self, scores: Float[Tensor, " k"], top: int) -> Answer:
        """Say what the scores of one image mean.

        Args:
            scores: From `scores`, of one image.
            top: How many outputs are listed; from `check_top`.
        """
        values, indices = scores.topk(top)
        found = zip(indices.tolist(), values.tolist(), strict=True)
        return {"top": [{self.noun: self.names[index], "probability": score} for index, score in found]}

    def cells(self, answer: Answer) -> dict[str, Any]:
        """Return an answer as the cells of a CSV file, by column."""
        ranks = ["", *(f"_{i}" for i in range(2, len(answer["top"]) + 1))]
        return {
            f"{name}{rank}": value
            for rank, entry in zip(ranks, answer["top"], strict=True)
            for name, value in entry.items()
        }

    def shown(self, answer: Answer) -> dict[str, str]:
        """Return an answer as the cells of a table for people, by column."""
        return {
            f"{i}.": f"{entry[self.noun]} {entry['probability']:.1%}"
            for i, entry in enumerate(answer["top"], start=1)
        }

    def describe_score(self, score: float) -> str:
        """Return a score as people read it."""
        return f"{score:.1%}"


@dataclass(frozen=True)
class Classification(Problem):
    """One class for each image; outputs are logits.

    Args:
        names: Names of the classes.
        temperature: What divides the logits for probabilities that are right as often as they say (Guo et al.
            2017, arXiv:1706.04599), chosen on validation; None where that is not known.
        divides: Whether `scores` divides by it.
    """

    temperature: float | None = None
    divides: bool = False

    task: ClassVar[TaskName] = "classify"
    noun: ClassVar[str] = "class"
    plural: ClassVar[str] = "classes"

    def check_targets(self, targets: Tensor) -> int:
        """Check labels, or probabilities; see `check_targets`."""
        return check_targets(targets, len(self.names))

    def scores(self, outputs: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return the probabilities of the classes."""
        if self.divides and self.temperature is not None:
            outputs = outputs / self.temperature
        return outputs.softmax(dim=-1)

    def evaluate(self, batches: Outputs, preprocessing: Preprocessing) -> Evaluation:
        """Compare logits with labels."""
        return evaluate_classes(batches, self.names, preprocessing, self.temperature)

    def fitted(self, batches: Outputs) -> Problem:
        """Choose the temperature; None where the images do not tell it."""
        return replace(self, temperature=fit_temperature(batches))

    def settings(self) -> dict[str, Any]:
        """Return the temperature."""
        return {} if self.temperature is None else {"temperature": self.temperature}

    def calibrated(self) -> Problem:
        """Return the problem with probabilities by the temperature."""
        if self.temperature is None:
            raise ValueError(
                "the model has no temperature, which a run chooses on its validation images when it ends, if "
                "one from 0.05 to 20 is the best"
            )
        return replace(self, divides=True)


@dataclass(frozen=True)
class MultiLabel(Problem):
    """Any number of labels for each image; outputs are logits, one a label.

    Args:
        names: Names of the labels.
        thresholds: Probability from which on each label counts as predicted; 0.5 if left out.
    """

    thresholds: tuple[float, ...] = ()

    task: ClassVar[TaskName] = "multilabel"
    noun: ClassVar[str] = "label"
    plural: ClassVar[str] = "labels"

    def __post_init__(self) -> None:
        if not self.thresholds:
            object.__setattr__(self, "thresholds", (0.5,) * len(self.names))
        if len(self.thresholds) != len(self.names):
            raise ValueError(
                f"each of {len(self.names)} labels has a threshold, got {len(self.thresholds)} of them"
            )

    def check_targets(self, targets: Tensor) -> int:
        """Check rows of shares from 0 to 1."""
        check_rows(targets, len(self.names))
        if targets.min() < 0 or targets.max() > 1:
            found = float(targets.min() if targets.min() < 0 else targets.max())
            raise ValueError(f"targets of labels must be in [0, 1], got {found}")
        return len(targets)

    def scores(self, outputs: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return the probability of each label."""
        return outputs.sigmoid()

    def figures(self, scores: Float[Tensor, "n k"], targets: Tensor) -> dict[str, float | None]:
        """Measure mean average precision and F1; see `LabelEvaluation.figures`."""
        return LabelEvaluation(self.names, self.thresholds, scores, targets, math.nan).figures

    def evaluate(self, batches: Outputs, preprocessing: Preprocessing) -> Evaluation:
        """Compare logits with the labels that images have."""
        outputs, targets = join_batches(batches)
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(dim=1).mean()
        return LabelEvaluation(self.names, self.thresholds, self.scores(outputs), targets, float(loss))

    def fitted(self, batches: Outputs) -> Problem:
        """Choose the threshold of each label for the best F1; 0.5 for labels that no image has."""
        outputs, targets = join_batches(batches)
        scores = self.scores(outputs)
        found = [best_threshold(scores[:, i], targets[:, i]) for i in range(len(self.names))]
        return replace(self, thresholds=tuple(found))

    def settings(self) -> dict[str, Any]:
        """Return the thresholds."""
        return {"thresholds": list(self.thresholds)}

    def answer(self, scores: Float[Tensor, " k"], top: int) -> Answer:
        """Name the labels that reach their thresholds, and the most probable ones."""
        reached = [
            name
            for name, score, threshold in zip(self.names, scores.tolist(), self.thresholds, strict=True)
            if score >= threshold
        ]
        return {"labels": reached, **super().answer(scores, top)}

    def cells(self, answer: Answer) -> dict[str, Any]:
        """Return an answer as the cells of a CSV file, labels with bars between."""
        return {"labels": "|".join(answer["labels"]), **super().cells(answer)}

    def shown(self, answer: Answer) -> dict[str, str]:
        """Return an answer as the cells of a table for people, labels with commas between."""
        return {"labels": ", ".join(answer["labels"]) or "none", **super().shown(answer)}


@dataclass(frozen=True)
class Regression(Problem):
    """Values of each image; outputs are values in standard deviations from the mean of the training images.

    Args:
        names: Names of the values.
        mean: Mean of each over the training images.
        std: Standard deviation of each over them.
    """

    mean: tuple[float, ...] = field(kw_only=True)
    std: tuple[float, ...] = field(kw_only=True)

    task: ClassVar[TaskName] = "regression"
    noun: ClassVar[str] = "value"
    plural: ClassVar[str] = "values"

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == len(self.names) or not all(std > 0 for std in self.std):
            raise ValueError(
                f"each of {len(self.names)} values has a mean and a standard deviation above 0, got "
                f"{self.mean} and {self.std}"
            )

    def check_targets(self, targets: Tensor) -> int:
        """Check rows of numbers."""
        check_rows(targets, len(self.names))
        return len(targets)

    def normalize(self, targets: Tensor) -> Tensor:
        """Return standardised targets."""
        return (targets - targets.new_tensor(self.mean)) / targets.new_tensor(self.std)

    def scores(self, outputs: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return values in the units of the data."""
        return outputs * outputs.new_tensor(self.std) + outputs.new_tensor(self.mean)

    def figures(self, scores: Float[Tensor, "n k"], targets: Tensor) -> dict[str, float | None]:
        """Measure error and R², the means over the values; None where a value has none."""
        found = value_figures(self.names, scores, targets).values()
        figures: dict[str, float | None] = {}
        for key in ("mae", "r2"):
            known = [value for each in found if (value := each[key]) is not None]
            figures[key] = sum(known) / len(known) if len(known) == len(self.names) else None
        return figures

    def evaluate(self, batches: Outputs, preprocessing: Preprocessing) -> Evaluation:
        """Compare values with the true ones."""
        outputs, targets = join_batches(batches)
        loss = (outputs - self.normalize(targets)).square().mean()
        return ValueEvaluation(self.names, self.scores(outputs), targets, float(loss))

    def settings(self) -> dict[str, Any]:
        """Return means and standard deviations."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def check_top(self, top: int | None) -> int:
        """Return the number of values: answers have all of them."""
        if top is not None:
            raise ValueError(f"top is for classes and labels; this model gives {', '.join(self.names)}")
        return len(self.names)

    def answer(self, scores: Float[Tensor, " k"], top: int) -> Answer:
        """Name all values."""
        return {"values": dict(zip(self.names, scores.tolist(), strict=True))}

    def cells(self, answer: Answer) -> dict[str, Any]:
        """Return the values by their names."""
        return answer["values"]

    def shown(self, answer: Answer) -> dict[str, str]:
        """Return the values by their names, with six digits."""
        return {name: self.describe_score(value) for name, value in answer["values"].items()}

    def describe_score(self, score: float) -> str:
        """Return a value with six digits."""
        return f"{score:.6g}"


PROBLEMS: dict[TaskName, type[Problem]] = {
    problem.task: problem for problem in (Classification, MultiLabel, Regression)
}


def problem_of(splits: Splits, record: ImageRecord | None = None) -> Problem:
    """Return the problem that labelled images pose; what it needs to know is of the training images.

    Args:
        splits: the images
        record: those that a run began with, of which some may have gone since
    """
    if splits.task != "regression":
        return PROBLEMS[splits.task](splits.classes)
    # in double precision: values may be large beside their spread
    values = splits.train.labels.double()
    if record is not None:
        values = torch.tensor(
            [
                [float(cell) for cell in image.label.split()]
                for image in record.images
                if image.split == "train"
            ],
            dtype=torch.float64,
        )
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    return Regression(splits.classes, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def read_problem(names: tuple[str, ...], saved: Mapping[str, Any], source: object) -> Problem:
    """Return the problem of a saved model.

    Args:
        names: Names of its outputs.
        saved: Its task, and what `Problem.settings` returned; empty for a classifier.
        source: What messages call the model.

    Raises:
        ValueError: It is not known, or damaged.
    """
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}
    task = settings.pop("task", "classify")
    if task not in PROBLEMS:
        raise ValueError(f"{source}: task must be one of {', '.join(PROBLEMS)}, got {task!r}")
    try:
        return PROBLEMS[task](names, **settings)
    except TypeError as error:
        raise ValueError(f"{source}: what the model keeps of its task is damaged: {error}") from error


def best_threshold(scores: Float[Tensor, " n"], targets: Float[Tensor, " n"]) -> float:
    """Return the threshold with the best F1, in the middle between two scores; 0.5 without positives."""
    from torchmetrics.functional.classification import binary_precision_recall_curve

    if not targets.any():
        return 0.5
    precision, recall, thresholds = binary_precision_recall_curve(scores, targets.int())
    f1 = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    best = int(f1[:-1].argmax())
    below = float(thresholds[best - 1]) if best else 0.0
    return (float(thresholds[best]) + below) / 2


def check_rows(targets: Tensor, count: int) -> None:
    """Check that targets are rows of numbers.

    Raises:
        ValueError: They are not, or not finite.
    """
    shape = tuple(targets.shape)
    if len(shape) != 2 or shape[1] != count or not shape[0] or not targets.is_floating_point():
        raise ValueError(
            f"targets have the shape (batch, {count}) and are floats, got {targets.dtype} {shape}"
        )
    if not targets.isfinite().all():
        raise ValueError("targets must be finite numbers")


def check_targets(targets: Tensor, num_classes: int) -> int:
    """Check a batch's targets: labels, of which -100 is ignored, or probabilities.

    Returns:
        How many of them count.

    Raises:
        ValueError: If a label is out of range, all labels are ignored, or probabilities have the wrong shape.
    """
    shape = tuple(targets.shape)
    if targets.is_floating_point():
        if len(shape) != 2 or shape[1] != num_classes:
            raise ValueError(f"targets as probabilities have the shape (batch, {num_classes}), got {shape}")
        return shape[0]
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"labels have the shape (batch,) with at least one of them, got {shape}")
    counts = targets != IGNORED
    ends = targets.where(counts, 0).aminmax()
    # one transfer for the three numbers
    low, high, counted = torch.stack([ends.min, ends.max, counts.sum()]).tolist()
    if not counted:
        raise ValueError(
            f"at least one label of a batch must count, but all {shape[0]} are {IGNORED} (ignored)"
        )
    if low < 0 or high >= num_classes:
        outside = low if low < 0 else high
        raise ValueError(f"labels must be in 0..{num_classes - 1} or {IGNORED} (ignored), got {outside}")
    return counted
