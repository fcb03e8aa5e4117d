"""Losses by task: values by definition, and options that are not theirs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vit_pytorch.training.losses import (
    LossConfig,
    asymmetric_loss,
    balanced_weights,
    focal_loss,
    make_loss,
)


def logits_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(12, 5, generator=generator), torch.randint(5, (12,), generator=generator)


def test_focal_loss_by_its_definition() -> None:
    logits, labels = logits_and_labels()
    labels[4] = -100
    found = focal_loss(logits, labels, 2.0, weights=torch.arange(1.0, 6.0))
    for i, label in enumerate(labels.tolist()):
        p = logits[i].softmax(0)[max(label, 0)]
        expected = 0.0 if label < 0 else float((label + 1) * (1 - p) ** 2 * -p.log())
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_without_exponent_is_cross_entropy(smoothing: float) -> None:
    logits, labels = logits_and_labels()
    for targets in (labels, torch.eye(5)[labels] * 0.7 + 0.06):
        expected = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(focal_loss(logits, targets, 0.0, label_smoothing=smoothing), expected)


def test_asymmetric_loss_by_its_definition() -> None:
    logits, _ = logits_and_labels()
    targets = (torch.arange(60).view(12, 5) % 3 == 0).float()
    found = asymmetric_loss(logits, targets, 4.0, 0.05)
    for row in range(12):
        expected = 0.0
        for x, y in zip(logits[row], targets[row], strict=True):
            p = x.sigmoid()
            shifted = (p - 0.05).clamp(min=0)
            expected += float(-p.log() if y else -(shifted**4) * (1 - shifted).log())
        assert float(found[row]) == pytest.approx(expected, rel=1e-4)
    plain = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    torch.testing.assert_close(asymmetric_loss(logits, targets, 0.0, 0.0), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_gradients_are_finite_where_a_model_is_sure(gamma: float) -> None:
    for sign in (-200.0, 200.0):
        logits = torch.full((2, 3), sign, requires_grad=True)
        asymmetric_loss(logits, torch.eye(3)[:2], gamma, 0.0).sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        logits = (torch.eye(3)[:2] * sign).requires_grad_()
        focal_loss(logits, torch.tensor([0, 1]), gamma).sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_weights_let_classes_count_alike() -> None:
    weights = balanced_weights(torch.tensor([0] * 6 + [1] * 3 + [3]), 4)
    assert weights.tolist() == pytest.approx([10 / 24, 10 / 12, 1.0, 10 / 4])
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert balanced_weights(rows, 3).tolist() == pytest.approx([1 / 3, 3.0, 1.0])
    logits, labels = logits_and_labels()
    criterion = make_loss(LossConfig(), "classify", weights=torch.arange(1.0, 6.0))
    expected = F.cross_entropy(logits, labels, reduction="none") * (labels + 1)
    torch.testing.assert_close(criterion(logits, labels), expected)


def test_losses_of_values() -> None:
    given, true = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    assert float(make_loss(LossConfig(), "regression")(given, true)) == 5.0
    huber = make_loss(LossConfig(name="huber", delta=2.0), "regression")
    assert float(huber(given, true)) == pytest.approx((0.5 + 2 * (3 - 1)) / 2)


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ({"name": "focal"}, "multilabel", "of task multilabel must be bce or asymmetric, got focal"),
        ({"name": "mse"}, "classify", "of task classify must be cross_entropy or focal, got mse"),
        (
            {"gamma": 2.0},
            "classify",
            "focal or asymmetric, got it with cross_entropy",
        ),
        (
            {"name": "focal", "margin": 0.1},
            "classify",
            "of the loss asymmetric, got it with focal",
        ),
        ({"delta": 1.0}, "regression", "loss.delta is of the loss huber, got it with mse"),
        ({"name": "huber", "delta": 0.0}, "regression", r"loss.delta must be in \[0.001, 1000\], got 0.0"),
        ({"name": "asymmetric", "margin": 1.0}, "multilabel", r"loss.margin must be in \[0, 1\), got 1.0"),
        ({"name": "focal", "gamma": -1.0}, "classify", r"loss.gamma must be in \[0, 20\], got -1.0"),
        ({"name": "focal", "gamma": 1e6}, "classify", r"loss.gamma must be in \[0, 20\], got 1000000.0"),
    ],
)
def test_options_that_are_not_the_losses(settings: dict[str, Any], task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings).check(task)
