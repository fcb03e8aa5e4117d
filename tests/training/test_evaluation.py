"""The one place where a classifier is measured, for the summary of a run and for `vit evaluate`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from vit_pytorch.data import Preprocessing
from vit_pytorch.training.evaluation import MOST_WRONG, Evaluation, evaluate
from vit_pytorch.training.summary import class_table

GREY = Preprocessing(image_size=(1, 7), channels=1, mean=(0.25,), std=(2.0,))


class Reading(nn.Module):
    """Logits that are the pixels themselves; in training they would be noise."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return torch.randn(len(images), 7) if self.training else images.flatten(1) * self.scale


def measure(logits: Tensor, labels: Tensor, *batch_sizes: int) -> Evaluation:
    """Measure a model that gives these logits, in a loader for each batch size."""
    data = TensorDataset(logits.view(-1, 1, 1, 7), labels)
    parts = torch.arange(len(data)).tensor_split(len(batch_sizes))
    loaders: list[Any] = [
        DataLoader(torch.utils.data.Subset(data, part.tolist()), batch_size=size)
        for part, size in zip(parts, batch_sizes, strict=True)
    ]
    return evaluate(Reading(), loaders, "abcdefg", GREY)


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
    assert evaluate(model, [[(images, torch.arange(7))]], "abcdefg", GREY).accuracy == 1
    assert model.training is training


@pytest.mark.parametrize("label", [-1, 7])
def test_a_label_of_no_class_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels must be in 0\.\.6 or -100 \(ignored\), got {label}"):
        measure(torch.zeros(2, 7), torch.tensor([0, label]), 2)


def test_accuracies_from_a_confusion_matrix() -> None:
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    result = Evaluation(("cat", "dog", "owl"), confusion, 0.5, ())
    assert (result.images, result.accuracy) == (6, pytest.approx(5 / 6))
    assert result.class_accuracy == {"cat": 0.75, "dog": 1.0, "owl": None}
    assert class_table(result.as_dict())[2:4] == ["| cat | 4 | 75.0% | dog (1) |", "| dog | 2 | 100.0% |  |"]


def test_of_a_clip_the_middle_is_shown() -> None:
    prep = Preprocessing(image_size=(1, 2), channels=1, mean=(0.25,), std=(2.0,), frames=4)
    clip = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1, 1).expand(1, 1, 4, 1, 2) / 8
    result = evaluate(Constant(), [[(clip, torch.tensor([1]))]], "ab", prep)
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
