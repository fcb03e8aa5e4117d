"""Training from a teacher as well as from labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import VisionModel
from vit_pytorch.create import comes_trained, is_named, open_model
from vit_pytorch.data import Splits
from vit_pytorch.distill import DistillWrapper, TaughtStudent
from vit_pytorch.preprocessing import Preprocessing, preprocessing_for
from vit_pytorch.training.config import DistillationConfig
from vit_pytorch.training.losses import IGNORED
from vit_pytorch.training.problems import (
    PROBLEMS,
    Classification,
    MultiLabel,
    Problem,
    Regression,
    check_targets,
)
from vit_pytorch.training.saved import read_classifier
from vit_pytorch.training.task import Batch, Classifier, Supervised, at_least_single


class Teacher(nn.Module):
    """A trained model that is shown the images of another model's training.

    Args:
        model: The model.
        problem: What its outputs mean.
        own: How its images are prepared.
        given: How the images that it is given are prepared.

    Raises:
        ValueError: Where the channels or the windows differ, or one of the two takes no images.
    """

    factor: Tensor
    shift: Tensor

    def __init__(
        self, model: VisionModel, problem: Problem, *, own: Preprocessing, given: Preprocessing
    ) -> None:
        super().__init__()
        if own.channels != given.channels:
            raise ValueError(f"the teacher takes {own.channels} channels, the student {given.channels}")
        if len(own.size) != 2 or len(given.size) != 2:
            raise ValueError(f"a teacher takes images, as the student does, got {own.size} and {given.size}")
        if not _same_window(own.window, given.window):
            raise ValueError(
                f"the teacher's images have the window {own.window}, the student's {given.window}; what a "
                "window leaves out cannot be brought back: give the student the teacher's (data.window)"
            )
        self.model = model
        self.problem = problem
        self.size = tuple(own.image_size)
        mean, std = _colours(own.mean), _colours(own.std)
        self.register_buffer("factor", _colours(given.std) / std)
        self.register_buffer("shift", (_colours(given.mean) - mean) / std)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Prepare the images as the model knows them, and give its outputs."""
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        return self.model(images * self.factor + self.shift)


def _same_window(first: tuple[float, float] | None, second: tuple[float, float] | None) -> bool:
    """Return whether two windows differ by at most a hundredth of their width."""
    if first is None or second is None:
        return first == second
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) <= (first[1] - first[0]) / 100


def _colours(values: Sequence[float]) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(tuple(values)).view(-1, 1, 1)


class DistilledClassifier(Classifier):
    """Trains a student by labels and by a teacher; validates it as any classifier.

    The teacher is no part of the checkpoints.

    Args:
        model: The student.
        teacher: Gives logits from the student's images.
        distillation: The loss.
        settings: As `Classifier` takes them.
    """

    def __init__(
        self, model: VisionModel, teacher: nn.Module, *, distillation: DistillationConfig, **settings: Any
    ) -> None:
        super().__init__(model, **settings)
        wrapper = DistillWrapper(
            student=model,
            teacher=teacher.requires_grad_(False),
            temperature=distillation.temperature,
            alpha=distillation.alpha,
            hard=distillation.hard,
        )
        # in a tuple, where neither checkpoints nor averages of weights look for modules
        self._network = (wrapper,)

    def start(self, rank: int) -> None:
        """Bring the teacher to the student's device and precision."""
        super().start(rank)
        self._network[0].teacher.to(next(self.model.parameters()))

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss from labels and from the teacher.

        Raises:
            ValueError: If images differ in size, which no teacher takes.
        """
        check_targets(batch.targets, self.num_classes)
        options = {"ignore_index": IGNORED, "label_smoothing": self.label_smoothing}
        return self.network(_of_one_size(batch), batch.targets, **options), {}


class DistilledSupervised(Supervised):
    """Trains a student of several labels, or of values, by targets and by a teacher.

    What the teacher decides (labels that reach its thresholds, values) is learned like targets; or, of
    labels, the probability of each, by the divergence of the student's from it at a temperature, as of
    classes.

    Args:
        model: The student.
        problem: What the outputs mean.
        teacher: Has outputs of the same names.
        distillation: The weight of the teacher's part, and how it is learned.
        settings: As `Supervised` takes them.
    """

    def __init__(
        self,
        model: VisionModel,
        problem: MultiLabel | Regression,
        teacher: Teacher,
        *,
        distillation: DistillationConfig,
        **settings: Any,
    ) -> None:
        super().__init__(model, problem, **settings)
        self.distillation = distillation
        self.taught_problem = teacher.problem
        # in a tuple, where neither checkpoints nor averages of weights look for modules
        self._network = (TaughtStudent(model, teacher.requires_grad_(False)),)

    def start(self, rank: int) -> None:
        """Bring the teacher to the student's device and precision."""
        super().start(rank)
        self._network[0].teacher.to(next(self.model.parameters()))

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss from targets and from the teacher.

        Raises:
            ValueError: If images differ in size, which no teacher takes.
        """
        outputs, distilled, taught = self.network(_of_one_size(batch))
        alpha = self.distillation.alpha
        loss = self._losses(outputs, batch.targets)
        return ((1 - alpha) * loss + alpha * self._teacher_losses(distilled, taught)).mean(), {}

    def _teacher_losses(self, distilled: Float[Tensor, "b k"], taught: Float[Tensor, "b k"]) -> Tensor:
        problem = self.taught_problem
        distilled, taught = at_least_single(distilled), at_least_single(taught)
        if isinstance(problem, MultiLabel) and not self.distillation.hard:
            temperature = self.distillation.temperature
            probabilities = (taught / temperature).sigmoid()
            student, teacher = (
                F.binary_cross_entropy_with_logits(logits / temperature, probabilities, reduction="none")
                for logits in (distilled, taught)
            )
            return temperature**2 * (student - teacher).sum(dim=1)
        scores = problem.scores(taught)
        if isinstance(problem, MultiLabel):
            scores = (scores >= scores.new_tensor(problem.thresholds)).to(scores)
        return self._losses(distilled, scores)


def _of_one_size(batch: Batch) -> Tensor:
    """Return the images of a batch, if they are of one size."""
    if not isinstance(batch.images, Tensor):
        raise ValueError("a teacher takes images of one size, got a list of images of different sizes")
    return batch.images


def make_teacher(config: DistillationConfig, splits: Splits, given: Preprocessing) -> Teacher:
    """Open the teacher that a configuration names.

    Args:
        config: Names the teacher.
        splits: The data; a trained run has been trained on the same classes, labels or values.
        given: How the student's images are prepared.

    Raises:
        ValueError: Where the teacher has another task, other classes or other channels.
        OSError: Where there is no such run, or published weights cannot be fetched.
    """
    assert config.teacher is not None
    model = open_model(config.teacher)
    if is_named(config.teacher) and not comes_trained(config.teacher):
        if splits.task != "classify" or model.num_classes != len(splits.classes):
            raise ValueError(
                f"the teacher {config.teacher} has {model.num_classes} classes, "
                f"the data {len(splits.classes)} {PROBLEMS[splits.task].plural}"
            )
        known = Classification(tuple(splits.classes))
        return Teacher(model, known, own=preprocessing_for(model), given=given)
    saved = read_classifier(model, config.teacher)
    if saved.problem.task != splits.task:
        raise ValueError(
            f"the task of the teacher {config.teacher} is {saved.problem.task}, the data's is {splits.task}"
        )
    if saved.classes != tuple(splits.classes):
        plural = PROBLEMS[splits.task].plural
        raise ValueError(
            f"the teacher {config.teacher} has the {plural} {', '.join(saved.classes[:5])} …, "
            f"the data {', '.join(splits.classes[:5])} …"
        )
    return Teacher(saved.model, saved.problem, own=saved.preprocessing, given=given)
