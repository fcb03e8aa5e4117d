"""Classes of few images: weights, balanced batches, focal loss, and the warning."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import TINY, train
from vit_pytorch.data import ArrayImages
from vit_pytorch.data.plan import BatchPlan

SMALL = [*TINY, "--model.image-size=20", "--batch-size=8", "--epochs=1", "--workers=0"]


@pytest.fixture
def unequal(image_folder: Path, tmp_path: Path) -> Path:
    """Two classes of 20 images and one of 3, with splits."""
    for name in ("one", "two", "zero"):
        for split, places in {"train": range(14), "val": range(14, 17), "test": range(17, 20)}.items():
            (tmp_path / "images" / split / name).mkdir(parents=True)
            kept = list(places)[:1] if (name, split) == ("zero", "train") else places
            for i in kept:
                shutil.copy(image_folder / name / f"{i}.png", tmp_path / "images" / split / name)
    return tmp_path / "images"


def test_a_rare_class_is_named(unequal: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"class 'zero' has 1 training images, 'one' has 14: .*--sampler"):
        assert train("--data", unequal, "--output", tmp_path / "run", *SMALL) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = summary["test"]["class_accuracy"].values()
    assert summary["test"]["balanced_accuracy"] == pytest.approx(sum(found) / 3)
    assert "macro F1" in (tmp_path / "run" / "summary.md").read_text()


@pytest.mark.parametrize("options", [["--class_weights=balanced", "--loss=focal"], ["--sampler=balanced"]])
def test_options_for_rare_classes_train(options: list[str], unequal: Path, tmp_path: Path) -> None:
    assert train("--data", unequal, "--output", tmp_path / "run", *options, *SMALL) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_balancing_twice_is_warned_of(unequal: Path, tmp_path: Path) -> None:
    options = ["--class_weights=balanced", "--sampler=balanced"]
    with pytest.warns(UserWarning, match="with both, rare ones count for more"):
        assert train("--data", unequal, "--output", tmp_path / "run", *options, *SMALL) == 0


def test_balanced_batches_show_classes_equally_often() -> None:
    labels = torch.tensor([0] * 900 + [2] * 90 + [5] * 10)
    images = ArrayImages(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), labels, origin="made")
    plan = BatchPlan(images, batch_size=100, train=True, seed=0, balanced=True)
    shown = [index for request in plan for index in request.indices]
    assert len(shown) == 1000
    counts = torch.bincount(labels[shown])
    assert counts[[1, 3, 4]].tolist() == [0, 0, 0]
    # 333 of each are expected; the standard deviation is 15
    assert all(270 < int(count) < 400 for count in counts[[0, 2, 5]])
    assert len({index for index in shown if labels[index] == 5}) == 10
    assert shown == [index for request in plan for index in request.indices]
    plan.set_epoch(1)
    assert shown != [index for request in plan for index in request.indices]
    halves = [
        BatchPlan(images, batch_size=50, train=True, seed=0, rank=rank, world_size=2, balanced=True)
        for rank in range(2)
    ]
    both = [sorted(a.indices + b.indices) for a, b in zip(*halves, strict=True)]
    plan.set_epoch(0)
    assert both == [sorted(request.indices) for request in plan]


def test_balanced_batches_need_classes() -> None:
    images = ArrayImages(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, 2), origin="made")
    with pytest.raises(ValueError, match="balanced batches need one class for each image"):
        BatchPlan(images, batch_size=2, train=True, seed=0, balanced=True)
