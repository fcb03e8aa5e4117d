"""What a student of several labels, or of values, learns from a teacher, by the formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_pytorch.distill import DistillableViT, TaughtStudent
from vit_pytorch.layers.tokens import TwoHeads
from vit_pytorch.registry import entries, find_entry
from vit_pytorch.training.config import DistillationConfig
from vit_pytorch.training.distillation import DistilledSupervised
from vit_pytorch.training.losses import LossConfig, make_loss
from vit_pytorch.training.problems import MultiLabel, Problem, Regression
from vit_pytorch.training.task import Batch

NAMES = ("a", "b", "c")
TAUGHT = torch.tensor([[2.0, -1.0, 0.4], [-3.0, 0.2, 0.7]])
ALPHA = 0.25


class Fixed(nn.Module):
    """A teacher that answers as it is told to."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, images: Tensor) -> Tensor:
        return TAUGHT


def test_a_classifier_that_passes_for_two_learns_from_a_teacher() -> None:
    """One model of each class; others are refused, such as VOLO, whose second classifier is one of cells."""
    students = set()
    for name in {entry.architecture: entry.name for entry in entries().values()}.values():
        entry = find_entry(name)
        model = entry.build(**{**entry.tiny, "num_classes": 3})
        if not isinstance(model.get_classifier(), TwoHeads):
            continue
        teacher = Fixed(MultiLabel(NAMES))
        images = torch.randn(2, model.channels, *model.image_size)
        assert {out.shape for out in TaughtStudent(model.eval(), teacher)(images)} == {(2, 3)}, name
        students.add(type(model).__name__)
    assert {"LeViT", "EfficientFormer"} <= students
    volo = find_entry("volo_d1_224")
    with pytest.raises(ValueError, match="as models of ViT and T2TViT get for a teacher; got VOLO"):
        TaughtStudent(volo.build(**{**volo.tiny, "num_classes": 3}), nn.Identity())


def losses(problem: Any, teacher: Problem, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the outputs of the student's two classifiers."""
    torch.manual_seed(0)
    sizes: Any = {"image_size": 10, "patch_size": 2, "dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
    model = DistillableViT(**sizes, num_classes=3)
    nn.init.normal_(model.head.classifier.weight)
    nn.init.normal_(model.head.distilled.weight)
    task = DistilledSupervised(
        model,
        problem,
        Fixed(teacher),  # type: ignore[arg-type]
        distillation=DistillationConfig(teacher="x", alpha=ALPHA, **options),
        criterion=make_loss(LossConfig(), problem.task),
    )
    images = torch.randn(2, 3, 10, 10)
    loss, _ = task.loss(Batch(images, targets, epoch=0, batch_idx=0))
    outputs, distilled, _ = task.network(images)
    assert not torch.allclose(outputs, distilled)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return loss.detach(), outputs.detach(), distilled.detach()


def test_labels_that_reach_the_teachers_thresholds_are_learned() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    teacher = MultiLabel(NAMES, thresholds=(0.9, 0.2, 0.62))
    loss, outputs, distilled = losses(MultiLabel(NAMES), teacher, targets)
    # probabilities 0.88, 0.27, 0.60; 0.05, 0.55, 0.67
    decided = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    expected = (1 - ALPHA) * F.binary_cross_entropy_with_logits(outputs, targets) * 3
    expected += ALPHA * F.binary_cross_entropy_with_logits(distilled, decided) * 3
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_probabilities_of_the_teacher_are_learned() -> None:
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    problem = MultiLabel(NAMES)
    loss, outputs, distilled = losses(problem, problem, targets, hard=False, temperature=2.0)
    divergence = torch.zeros(2)
    for sign in (1, -1):
        student, teacher = F.logsigmoid(sign * distilled / 2), F.logsigmoid(sign * TAUGHT / 2)
        divergence += (teacher.exp() * (teacher - student)).sum(dim=1)
    expected = (1 - ALPHA) * F.binary_cross_entropy_with_logits(outputs, targets) * 3
    expected += ALPHA * 4 * divergence.mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_values_of_the_teacher_are_learned_in_the_students_units() -> None:
    targets = torch.tensor([[10.0, -2.0, 0.5], [30.0, 4.0, 0.0]])
    problem = Regression(NAMES, mean=(20.0, 0.0, 0.1), std=(10.0, 3.0, 0.5))
    teacher = Regression(NAMES, mean=(25.0, 1.0, 0.0), std=(5.0, 2.0, 1.0))
    loss, outputs, distilled = losses(problem, teacher, targets)
    mean, std = torch.tensor(problem.mean), torch.tensor(problem.std)
    values = TAUGHT * torch.tensor(teacher.std) + torch.tensor(teacher.mean)
    expected = (1 - ALPHA) * F.mse_loss(outputs, (targets - mean) / std)
    expected += ALPHA * F.mse_loss(distilled, (values - mean) / std)
    assert loss == pytest.approx(float(expected), rel=1e-5)
