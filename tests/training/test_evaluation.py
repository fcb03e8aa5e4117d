"""The one place where a classifier is measured, for the summary of a run and for `vit evaluate`."""

import json
from typing import Any

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vit_pytorch.data import Preprocessing
from vit_pytorch.training.evaluation import (
    MOST_WRONG,
    ClassEvaluation,
    calibration_error,
    evaluate,
    fit_temperature,
)
from vit_pytorch.training.problems import Classification
from vit_pytorch.training.summary import markdown_table

LETTERS = Classification(tuple("abcdefg"))
GREY = Preprocessing(image_size=(1, 7), channels=1, mean=(0.25,), std=(2.0,))


class Reading(nn.Module):
    """Logits that are the pixels themselves; in training they would be noise."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), 7) if self.training else images.flatten(1) * self.scale


def measure(logits: Tensor, labels: Tensor, *batch_sizes: int) -> Any:
    """Measure a model that gives these logits, in a loader for each batch size."""
    data = TensorDataset(logits.view(-1, 1, 1, 7), labels)
    parts = torch.arange(len(data)).tensor_split(len(batch_sizes))
    loaders: list[Any] = [
        DataLoader(torch.utils.data.Subset(data, part.tolist()), batch_size=size)
        for part, size in zip(parts, batch_sizes, strict=True)
    ]
    return evaluate(Reading(), loaders, LETTERS, GREY)


def test_measures_of_a_known_model() -> None:
    logits = torch.eye(7).roll(1, 1) * 3 + torch.eye(7) * 2
    labels = torch.tensor([0, 1, 2, 4, 5, 6, -100])
    result = measure(logits, labels, 7)

    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert (result.images, result.accuracy) == (6, pytest.approx(3 / 6))
    assert result.confusion.sum() == 6
    assert all(result.confusion[label, (row + 1) % 7] == 1 for row, label in enumerate(labels[:6].tolist()))
    assert result.class_accuracy == {**dict.fromkeys("abc", 0.0), "d": None, **dict.fromkeys("efg", 1.0)}


def test_the_batches_do_not_matter() -> None:
    logits, labels = torch.randn(50, 7), torch.arange(50) % 7
    whole, cut = measure(logits, labels, 50), measure(logits, labels, 7, 3, 11)
    assert torch.equal(whole.confusion, cut.confusion)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert [wrong.true for wrong in cut.wrong] == [wrong.true for wrong in whole.wrong]


def test_the_first_wrong_images_are_kept_as_the_model_saw_them() -> None:
    logits = torch.zeros(2 * MOST_WRONG, 7)
    logits[:, 1] = 0.3
    labels = torch.tensor([1, 2]).repeat(MOST_WRONG)
    result = measure(logits, labels, 8, 8)
    assert len(result.wrong) == MOST_WRONG
    first = result.wrong[0]
    assert (first.true, first.predicted) == (2, 1)
    assert first.probability == pytest.approx(float(logits[1].softmax(0)[1]))
    assert torch.allclose(first.image, (logits[1].view(1, 1, 7) * 2 + 0.25).clamp(0, 1))


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_measured_in_eval_mode_and_left_as_it_was(training: bool) -> None:
    model, images = Reading().train(training), torch.eye(7).view(7, 1, 1, 7)
    assert evaluate(model, [[(images, torch.arange(7))]], LETTERS, GREY).accuracy == 1
    assert model.training is training


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_of_no_class_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels must be in 0\.\.6 or -100 \(ignored\), got {label}"):
        measure(torch.zeros(2, 7), torch.tensor([0, label]), 2)


def test_accuracies_from_a_confusion_matrix() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    result = ClassEvaluation(("cat", "dog", "owl"), confusion, 0.5, ())
    assert (result.images, result.accuracy) == (6, pytest.approx(5 / 6))
    assert result.class_accuracy == {"cat": 0.75, "dog": 1.0, "owl": None}
    assert markdown_table(result.table("image"))[2:4] == [
        "| cat | 4 | 75.0% | dog (1) |",
        "| dog | 2 | 100.0% |  |",
    ]


def test_of_a_clip_the_middle_is_shown() -> None:
    prep = Preprocessing(image_size=(1, 2), channels=1, mean=(0.25,), std=(2.0,), frames=4)
    clip = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 1, 2) / 8
    result = evaluate(Constant(), [[(clip, torch.tensor([1]))]], Classification(("a", "b")), prep)
    assert result.confusion.tolist() == [[0, 0], [1, 0]]
    (wrong,) = result.wrong
    assert wrong.image.tolist() == [[[0.75, 0.75]]]


class Constant(nn.Module):
    """Says the first of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([[1.0, 0.0]]))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_balanced_figures_agree_with_scikit_learn() -> None:
    true = torch.tensor([0] * 40 + [1] * 5 + [2] * 3)
    said = torch.tensor([0] * 38 + [1, 2] + [1, 1, 0, 0, 0] + [2, 0, 1])
    confusion = torch.bincount(true * 4 + said, minlength=16).view(4, 4)
    result = ClassEvaluation(tuple("abcd"), confusion, 0.0)
    assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, said))
    assert result.macro_f1 == pytest.approx(f1_score(true, said, average="macro"))


def test_the_temperature_that_logits_were_multiplied_by_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    batches = [(2.5 * logits[i::7], labels[i::7], logits[i::7]) for i in range(7)]
    temperature = fit_temperature(batches)
    assert temperature == pytest.approx(2.5, rel=0.1)

    def loss(value: float) -> float:
        return float(nn.functional.cross_entropy(2.5 * logits / value, labels))

    assert loss(temperature) <= min(loss(temperature * factor) for factor in (0.98, 1.02))
    problem = Classification(tuple("abcde"), temperature)
    result: Any = problem.evaluate(batches, GREY)
    before, after = map(calibration_error, result.reliability)
    assert after < 0.03 < 0.15 < before
    assert torch.allclose(problem.calibrated().scores(logits), (logits / temperature).softmax(1))
    assert torch.equal(problem.scores(logits), logits.softmax(1))


def test_the_calibration_error_of_known_probabilities() -> None:
    """Ten images at 0.75, of which six are right, and ten at 0.9, of which ten are."""
    chances = torch.tensor([0.75] * 10 + [0.9] * 10)
    logits = torch.stack([chances.log(), (1 - chances).log()], dim=1)
    labels = torch.tensor([0] * 6 + [1] * 4 + [0] * 10)
    result: Any = Classification(("a", "b")).evaluate([(logits, labels, logits)], GREY)
    assert calibration_error(result.reliability[0]) == pytest.approx((0.15 + 0.1) / 2)


@pytest.mark.parametrize("count", [100, 101, 2000])
def test_confusion_in_json(count: int) -> None:
    confusion = torch.zeros(count, count, dtype=torch.int64)
    confusion.fill_diagonal_(2)[3, 7] = 5
    result = ClassEvaluation(tuple(map(str, range(count))), confusion, loss=0.5)
    figures = result.as_dict()
    if count <= 100:
        assert figures["confusion"] == confusion.tolist()
    else:
        assert "confusion" not in figures
        again = torch.zeros_like(confusion)
        for true, predicted, images in figures["confusion_cells"]:
            again[true, predicted] = images
        assert again.equal(confusion)
        assert len(json.dumps(figures, indent=2)) < 200 * count
    header, rows = result.table("image")
    assert rows[3] == ["3", "7", f"{2 / 7:.1%}", "7 (5)"]
    assert rows[4] == ["4", "2", "100.0%", ""]
    assert len(rows) == count
    assert header[-1] == "most often taken for"
