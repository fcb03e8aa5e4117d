"""What is watched in a pretraining, and when the alarm is raised."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.pretraining.small import HEADS, VIT, few_digits, pretrain, settings
from vit_pytorch.data import Augmentation, Splits, eval_transform
from vit_pytorch.ssl.collapse import feature_spread, prediction_entropy, usage_entropy
from vit_pytorch.ssl.probes import knn_accuracy
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.optim import OptimizerConfig
from vit_pytorch.training.pretraining.config import DinoConfig, MonitorConfig
from vit_pytorch.training.pretraining.methods import backbone_of, centre_of
from vit_pytorch.training.pretraining.monitor import (
    ENTROPY,
    KNN,
    SPREAD,
    USAGE,
    Monitor,
    find_collapse,
)
from vit_pytorch.training.pretraining.run import build
from vit_pytorch.training.probing import embed, spread_over

PLAIN: dict[str, Any] = {
    **HEADS,
    "freeze_last_layer_epochs": 0,
    "warmup_teacher_temp_epochs": 0,
    "teacher_temp": 0.04,
    "momentum": 0.99,
    "center_decay": 0.5,
    "weight_decay_end": None,
}


class Metrics(Callback):
    """Keeps what was measured in each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, loop, metrics):
        self.rows.append(dict(metrics))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return few_digits()


def watch(folder: Path, splits: Splits, lr: float, epochs: int, **changes: Any):
    config = settings(
        DinoConfig(**{**PLAIN, **changes}),
        epochs=epochs,
        optimizer=OptimizerConfig(lr=lr),
        model={**VIT, "pool": "mean", "dropout": 0.0},
        augmentation=Augmentation(),
        monitor=MonitorConfig(knn_every=4, neighbours=5),
    )
    metrics = Metrics()
    _, _, loop = pretrain(folder, config, metrics, splits=splits)
    (monitor,) = (callback for callback in loop.callbacks if isinstance(callback, Monitor))
    return monitor, metrics.rows, loop.task


@pytest.mark.parametrize(
    ("changes", "lr", "epochs", "what"),
    [
        ({"center_decay": 1.0, "momentum": 0.9}, 0.003, 6, "gives every image the same logit"),
        ({"teacher_temp": 1.0, "momentum": 0.9}, 0.003, 6, "is uniform for every image"),
        ({}, 0.0001, 6, None),
    ],
    ids=["without centring", "without sharpening", "with both"],
)
def test_a_collapse_is_named(tmp_path: Path, splits, caplog, changes, lr, epochs, what):
    monitor, rows, _ = watch(tmp_path, splits, lr, epochs, **changes)
    most = math.log(PLAIN["num_logits"])
    assert all(0 <= row[ENTROPY] <= row[USAGE] + 1e-4 <= most + 2e-4 for row in rows)
    if what is None:
        assert monitor.alarms == []
        assert "collapse" not in caplog.text
        assert rows[-1][USAGE] - rows[-1][ENTROPY] > 0.2
        return
    # the first 30 % are not judged, then patience begins
    (alarm,) = monitor.alarms
    assert alarm["epoch"] == 5
    assert what in alarm["what"]
    assert f"collapse, seen for 3 epochs up to epoch 5: the teacher {what}" in caplog.text
    assert rows[-1][USAGE] - rows[-1][ENTROPY] < 0.01


@pytest.mark.parametrize("layer", [None, 0])
def test_figures_are_those_of_the_functions(tmp_path: Path, splits, layer):
    """Over the whole validation split, whatever its batches; of the teacher, not of the student."""
    _, rows, task = watch(tmp_path, splits, 0.003, 5, hidden_layer=layer)
    method = task.model.eval()
    _, data, _ = build(settings("dino"), splits)
    transform = eval_transform(data.preprocessing)
    with torch.no_grad():
        val, known = (transform(part.images) for part in (splits.val, splits.train))
        features, bank = (embed(backbone_of(method), part) for part in (val, known))
        student = method.teacher.model
        logits = student.head(student.embed(val)) - centre_of(method).value
    said = logits / method.teacher_temp(int(method.steps))
    last = rows[-1]
    assert last[SPREAD] == pytest.approx(float(feature_spread(features)), rel=1e-4)
    assert last[ENTROPY] == pytest.approx(float(prediction_entropy(said)), rel=1e-4)
    assert last[USAGE] == pytest.approx(float(usage_entropy(said)), rel=1e-4)
    right = knn_accuracy(bank, splits.train.labels, features, splits.val.labels, neighbours=5)
    assert last[KNN] == pytest.approx(right)
    # every fourth epoch and the last; no value is carried over
    assert [KNN in row for row in rows] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ({SPREAD: 0.2}, None),
        ({SPREAD: 0.005}, "the features of all images point the same way"),
        ({SPREAD: 0.3, ENTROPY: 2.0, USAGE: 2.02}, "says the same of every image"),
        ({SPREAD: 0.3, ENTROPY: 0.1, USAGE: 0.11}, "the same logit"),
        ({SPREAD: 0.3, ENTROPY: 4.1, USAGE: 4.12}, "uniform"),
        ({SPREAD: 0.3, ENTROPY: 2.0, USAGE: 3.2}, None),
        ({SPREAD: 0.005, ENTROPY: 2.0, USAGE: 3.2}, "the features of all images"),
        ({}, None),
    ],
)
def test_thresholds(found, what):
    said = find_collapse(found, MonitorConfig(), logits=64)
    assert said is None if what is None else what in said


def test_more_neighbours_than_images_are_refused(splits):
    config = settings("mae")
    _, data, _ = build(config, splits)
    with pytest.raises(ValueError, match="neighbours are among the 96 training images, got 97"):
        Monitor(replace(config.monitor, neighbours=97), data)


def test_images_are_spread_over_all(splits):
    chosen = spread_over(splits.train, 10)
    assert len(chosen) == 10
    assert chosen.positions.tolist() == splits.train.positions[torch.arange(10) * 96 // 10].tolist()
    assert spread_over(splits.train, 96) is splits.train
