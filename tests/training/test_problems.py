"""What outputs mean, by task: targets, figures against scikit-learn, answers, saved settings."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score

from vit_pytorch.data import Preprocessing
from vit_pytorch.training.evaluation import ClassEvaluation, LabelEvaluation, headline
from vit_pytorch.training.problems import (
    Classification,
    MultiLabel,
    Problem,
    Regression,
    best_threshold,
    read_problem,
)

PREP = Preprocessing(image_size=(4, 4))


def labelled(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    targets = (torch.rand(count, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.0])).float()
    return torch.randn(count, 3, generator=generator) + targets - 1, targets


def test_figures_of_labels_agree_with_scikit_learn() -> None:
    outputs, targets = labelled()
    problem = MultiLabel(("a", "b", "never"), (0.4, 0.5, 0.6))
    result: Any = problem.evaluate(
        [(outputs[:25], targets[:25], outputs), (outputs[25:], targets[25:], outputs)], PREP
    )
    scores, true = outputs.sigmoid().numpy(), targets.numpy()
    decided = scores >= np.array([0.4, 0.5, 0.6])
    figures = result.figures
    expected = [average_precision_score(true[:, i], scores[:, i]) for i in range(2)]
    assert figures["map"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert figures["f1"] == pytest.approx(f1_score(true.ravel(), decided.ravel()))
    assert decided[:, 2].any()
    assert figures["macro_f1"] == pytest.approx(f1_score(true, decided, average="macro"))
    assert result.absent == ("never",)
    assert result.as_dict()["absent"] == ["never"]
    assert headline(result, "image").endswith(
        "(labels that no image has, 1: 'never'; mAP leaves them out, macro F1 those that were not predicted)"
    )
    by_label = result.by_label()
    assert by_label["b"]["average_precision"] == pytest.approx(expected[1], abs=1e-6)
    assert by_label["never"]["images"] == 0
    assert (by_label["never"]["average_precision"], by_label["never"]["f1"]) == (None, 0.0)
    assert result.table("image")[1][2][:3] == ["never", "0", "0.600"]
    assert result.as_dict()["images"] == 60


def test_macro_f1_leaves_out_the_same_labels_as_of_classes() -> None:
    """A class that no image has counts where it was predicted, as in scikit-learn, and so does a label."""
    true, said = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])
    confusion = torch.bincount(true * 4 + said, minlength=16).view(4, 4)
    whole = ClassEvaluation(tuple("abcd"), confusion, 0.0)
    targets, scores = F.one_hot(true, 4).float(), F.one_hot(said, 4).float()
    several = LabelEvaluation(tuple("abcd"), (0.5,) * 4, scores, targets, 0.0)
    expected = f1_score(true, said, average="macro")
    assert whole.macro_f1 == pytest.approx(expected)
    assert several.figures["macro_f1"] == pytest.approx(expected)
    assert whole.absent == several.absent == ("c", "d")
    assert "(classes that no film has, 2: 'c', 'd'; balanced accuracy leaves" in headline(whole, "film")


def test_figures_of_values_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(2)
    targets = torch.randn(40, 2, generator=generator) * torch.tensor([3.0, 100.0]) + 1000
    problem = Regression(("x", "y"), mean=(1000.0, 1000.0), std=(3.0, 100.0))
    outputs = problem.normalize(targets) + 0.3 * torch.randn(40, 2, generator=generator)
    result: Any = problem.evaluate([(outputs, targets, outputs)], PREP)
    predicted = (outputs * torch.tensor([3.0, 100.0]) + 1000).numpy()
    for i, name in enumerate(problem.names):
        each = result.by_value()[name]
        assert each["mae"] == pytest.approx(mean_absolute_error(targets[:, i], predicted[:, i]), rel=1e-4)
        assert each["r2"] == pytest.approx(r2_score(targets[:, i], predicted[:, i]), rel=1e-4)
    assert result.loss == pytest.approx(0.09, rel=0.5)
    assert problem.figures(torch.tensor(predicted), targets)["r2"] == pytest.approx(
        np.mean([each["r2"] for each in result.by_value().values()])
    )
    same: Any = problem.evaluate([(outputs, torch.full_like(targets, 7.0), outputs)], PREP)
    assert same.by_value()["x"]["r2"] is None
    assert "R² none" in same.headline


def test_thresholds_have_the_best_f1() -> None:
    outputs, targets = labelled(200)
    scores = outputs[:, 0].sigmoid()
    threshold = best_threshold(scores, targets[:, 0])
    best = f1_score(targets[:, 0], scores >= threshold)
    assert best == pytest.approx(max(f1_score(targets[:, 0], scores >= t) for t in scores.tolist()))
    assert threshold not in scores.tolist()
    fitted: Any = MultiLabel(("a", "b", "never")).fitted([(outputs, targets, outputs)])
    assert fitted.thresholds[0] == pytest.approx(threshold, rel=1e-5)
    assert fitted.thresholds[2] == 0.5


def test_answers() -> None:
    classes = Classification(("cat", "dog", "owl"))
    answer = classes.answer(torch.tensor([0.2, 0.5, 0.3]), classes.check_top(2))
    assert [entry["class"] for entry in answer["top"]] == ["dog", "owl"]
    assert list(classes.cells(answer)) == ["class", "probability", "class_2", "probability_2"]
    assert classes.shown(answer) == {"1.": "dog 50.0%", "2.": "owl 30.0%"}
    labels = MultiLabel(("cat", "dog", "owl"), (0.1, 0.6, 0.3))
    answer = labels.answer(torch.tensor([0.2, 0.5, 0.4]), labels.check_top(None))
    assert answer["labels"] == ["cat", "owl"]
    assert answer["top"][0] == {"label": "dog", "probability": 0.5}
    assert list(labels.cells(answer).values())[:3] == ["cat|owl", "dog", 0.5]
    assert labels.shown(labels.answer(torch.zeros(3), 1)) == {"labels": "none", "1.": "cat 0.0%"}
    values = Regression(("angle",), mean=(10.0,), std=(2.0,))
    answer = values.answer(values.scores(torch.tensor([[1.5]]))[0], values.check_top(None))
    assert answer == {"values": {"angle": 13.0}}
    assert (values.cells(answer), values.shown(answer)) == ({"angle": 13.0}, {"angle": "13"})
    with pytest.raises(ValueError, match="top is for classes and labels; this model gives angle"):
        values.check_top(2)


@pytest.mark.parametrize(
    "problem",
    [
        Classification(("a", "b")),
        Classification(("a", "b"), 1.5),
        MultiLabel(("a", "b"), (0.25, 0.75)),
        Regression(("x",), mean=(3.0,), std=(0.5,)),
    ],
)
def test_what_is_saved_is_read(problem: Problem) -> None:
    saved = {"task": problem.task, **problem.settings()}
    assert read_problem(problem.names, saved, "a run") == problem


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"task": "rank"}, "a run: task must be one of classify, multilabel, regression, got 'rank'"),
        ({"task": "regression"}, "a run: what the model keeps of its task is damaged"),
        ({"task": "multilabel", "thresholds": [0.5]}, "each of 2 labels has a threshold, got 1"),
        ({"task": "regression", "mean": [0, 0], "std": [1, 0]}, "a standard deviation above 0"),
    ],
)
def test_saved_problems_that_are_none(saved: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_problem(("a", "b"), saved, "a run")


@pytest.mark.parametrize(
    ("problem", "targets", "message"),
    [
        (
            MultiLabel(("a", "b")),
            torch.tensor([[0.0, 1.5]]),
            r"must be in \[0, 1\], got 1.5",
        ),
        (MultiLabel(("a", "b")), torch.tensor([0, 1]), "are floats, got torch.int64"),
        (Regression(("x",), mean=(0.0,), std=(1.0,)), torch.tensor([[float("nan")]]), "must be finite"),
    ],
)
def test_impossible_targets(problem: Problem, targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problem.check_targets(targets)
