"""Losses of supervised training by task, what `--loss` names, and what `--select` does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from vit_pytorch.data.datasets import TaskName


class NonFiniteError(RuntimeError):
    """Loss, gradients or weights are not finite."""


LossName = Literal["cross_entropy", "focal", "bce", "asymmetric", "mse", "huber"]
# those of each task, the default first
LOSSES: dict[TaskName, tuple[LossName, ...]] = {
    "classify": ("cross_entropy", "focal"),
    "multilabel": ("bce", "asymmetric"),
    "regression": ("mse", "huber"),
}
# how the best checkpoint is chosen, as arguments of `Checkpoints`, the default first
SELECTIONS: dict[TaskName, dict[str, dict[str, Any]]] = {
    "classify": {
        "accuracy": {"monitor": "val/accuracy", "mode": "max", "tie_break": "val/objective"},
        "loss": {"monitor": "val/objective"},
    },
    "multilabel": {
        "map": {"monitor": "val/map", "mode": "max", "tie_break": "val/loss"},
        "f1": {"monitor": "val/f1", "mode": "max", "tie_break": "val/loss"},
        "loss": {"monitor": "val/loss"},
    },
    "regression": {"loss": {"monitor": "val/loss"}, "mae": {"monitor": "val/mae"}},
}
# losses that classes, or labels, can be weighed in
WEIGHTED = ("cross_entropy", "focal", "bce")
# numbers that belong to a loss, and their defaults
NUMBERS: dict[str, dict[str, float]] = {
    "focal": {"gamma": 2.0},
    "asymmetric": {"gamma": 4.0, "margin": 0.05},
    "huber": {"delta": 1.0},
}
# a label that does not count
IGNORED = -100
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss is trained.

    Args:
        name: `cross_entropy` or `focal` of classes, `bce` or `asymmetric` of labels, `mse` or `huber` of
            values. The first of a task if left out; focal is arXiv:1708.02002, asymmetric arXiv:2009.14119.
        gamma: Exponent by which what is already right counts less, at most 20: of `focal` for all classes,
            default 2; of `asymmetric` for labels that are absent, default 4.
        margin: Of `asymmetric`: absent labels below this probability cost nothing; default 0.05.
        delta: Of `huber`: errors beyond so many standard deviations count linearly, 0.001 to 1000; default
            1.
    """

    name: LossName | None = None
    gamma: float | None = None
    margin: float | None = None
    delta: float | None = None

    def check(self, task: TaskName) -> None:
        """Check that the loss is one of a task, and its numbers are its own.

        Raises:
            ValueError: It is not, or a number is out of its range.
        """
        name = self.chosen(task)
        if name not in LOSSES[task]:
            raise ValueError(f"loss.name of task {task} must be {' or '.join(LOSSES[task])}, got {name}")
        numbers = {key: getattr(self, key) for key in ("gamma", "margin", "delta")}
        own = NUMBERS.get(name, {})
        for key, value in numbers.items():
            if value is None:
                continue
            if key not in own:
                losses = " or ".join(loss for loss, keys in NUMBERS.items() if key in keys)
                raise ValueError(f"loss.{key} is of the loss {losses}, got it with {name}")
            rule, fits = {
                "gamma": ("in [0, 20]", 0 <= value <= 20),
                "margin": ("in [0, 1)", 0 <= value < 1),
                "delta": ("in [0.001, 1000]", 0.001 <= value <= 1000),
            }[key]
            if not fits:
                raise ValueError(f"loss.{key} must be {rule}, got {value}")

    def chosen(self, task: TaskName) -> LossName:
        """Return the name of the loss for a task."""
        return self.name or LOSSES[task][0]

    def number(self, task: TaskName, key: str) -> float:
        """Return a number of the loss, or its default."""
        value = getattr(self, key)
        return NUMBERS[self.chosen(task)][key] if value is None else value


def make_loss(
    config: LossConfig,
    task: TaskName,
    *,
    label_smoothing: float = 0.0,
    weights: Float[Tensor, " k"] | None = None,
) -> Loss:
    """Build a function from a model's outputs (b, k) and targets to a loss for each image (b,).

    A classifier's loss is 0 for labels that are ignored.

    Args:
        config: Which loss.
        task: What is learned.
        label_smoothing: Share of a class's probability that is spread over all classes.
        weights: Of classes, by which the loss of their images is multiplied; of several labels, by which that
            of present labels is.
    """
    name = config.chosen(task)
    if name == "cross_entropy":
        return lambda logits, targets: F.cross_entropy(
            logits,
            targets,
            weight=None if weights is None else weights.to(logits),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="none",
        )
    if name == "focal":
        gamma = config.number(task, "gamma")
        return lambda logits, targets: focal_loss(
            logits, targets, gamma, weights=weights, label_smoothing=label_smoothing
        )
    if name == "bce":
        return lambda logits, targets: F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=None if weights is None else weights.to(logits), reduction="none"
        ).sum(dim=1)
    if name == "asymmetric":
        gamma, margin = config.number(task, "gamma"), config.number(task, "margin")
        return lambda logits, targets: asymmetric_loss(logits, targets, gamma, margin)
    if name == "mse":
        return lambda values, targets: (values - targets).square().mean(dim=1)
    delta = config.number(task, "delta")
    return lambda values, targets: F.huber_loss(values, targets, delta=delta, reduction="none").mean(dim=1)


def focal_loss(
    logits: Float[Tensor, "b k"],
    targets: Shaped[Tensor, "b *k"],
    gamma: float,
    *,
    weights: Float[Tensor, " k"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " b"]:
    """Compute the focal loss of each image (arXiv:1708.02002, equation 4, over all classes by softmax).

    Args:
        logits: outputs of the model.
        targets: classes, of which -100 is ignored, or probabilities.
        gamma: exponent of 1 - p, by which classes of high probability p count less; 0 for cross entropy.
        weights: of classes.
        label_smoothing: share of each target's probability that is spread over all classes.
    """
    counts = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    if not targets.is_floating_point():
        counts = targets != IGNORED
        targets = F.one_hot(targets.where(counts, 0), logits.shape[1])
    shares = targets.to(logits) * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    if weights is not None:
        shares = shares * weights.to(logits)
    log_probs = logits.log_softmax(dim=1)
    # 1 - p from the logarithm keeps its digits where p is nearly 1; its gradient is finite for gamma < 1, too
    rest = (-torch.expm1(log_probs)).clamp(min=torch.finfo(logits.dtype).eps)
    return (-shares * rest.pow(gamma) * log_probs).sum(dim=1) * counts


def asymmetric_loss(
    logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"], gamma: float, margin: float
) -> Float[Tensor, " b"]:
    """Compute the asymmetric loss of each image, summed over labels (arXiv:2009.14119, equation 7).

    Present labels cost their binary cross entropy (the paper's gamma+ = 0); absent ones, of probability p,
    cost -p_m^gamma log(1 - p_m) with p_m = max(p - margin, 0).

    Args:
        logits: outputs of the model.
        targets: 1 for labels that are present, 0 for those that are absent, or in between.
        gamma: exponent for absent labels (the paper's gamma-).
        margin: probability below which absent labels cost nothing.
    """
    # not 0, where the derivative of a power below 1 is infinite, nor 1, where the logarithm is
    eps = torch.finfo(logits.dtype).eps
    shifted = (logits.sigmoid() - margin).clamp(eps, 1 - eps)
    absent = -shifted.pow(gamma) * torch.log1p(-shifted)
    return (-targets * F.logsigmoid(logits) + (1 - targets) * absent).sum(dim=1)


def balanced_weights(labels: Shaped[Tensor, "n *k"], num_classes: int) -> Float[Tensor, " k"]:
    """Return weights that let classes count alike, or present and absent labels.

    Args:
        labels: classes of the training images, or rows of labels.
        num_classes: number of classes, or labels.

    Returns:
        Of classes n / (k * images of the class), whose mean over images is 1; of labels the number of images
        without one over that of images with it. What no image has counts 1, as does a label that all have.
    """
    if labels.ndim == 2:
        present = labels.sum(dim=0)
        # a weight of 0 would let a label that all images have learn nothing
        some = (present > 0) & (present < len(labels))
        return torch.where(some, (len(labels) - present) / present.clamp(min=1), 1.0)
    counts = torch.bincount(labels, minlength=num_classes)
    return torch.where(counts > 0, len(labels) / (num_classes * counts.clamp(min=1)), 1.0)
