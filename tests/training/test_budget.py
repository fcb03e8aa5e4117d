"""Epochs and sizes that a time is enough for."""

import re

import pytest
import yaml

from vit_pytorch.cli import main
from vit_pytorch.data import open_data
from vit_pytorch.training import budget
from vit_pytorch.training.budget import Rates, fit_budget, seconds_of
from vit_pytorch.training.config import DataConfig, ScheduleConfig, TrainConfig
from vit_pytorch.training.run import build_model, image_data

SIZES = {"image_size": 8, "patch_size": 1, "dim": 32, "depth": 1, "heads": 2, "dim_head": 16, "mlp_dim": 32}
MODEL = {"name": "vit_tiny_patch16_224", **SIZES}


def config(**settings):
    return TrainConfig(model=MODEL, schedule=ScheduleConfig(warmup_epochs=4), epochs=40, **settings)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("90s", 90), ("1.5h", 5400), ("2H5m", 7500)],
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "0m", "ten minutes", "5m1h", "-5m", "1.2.3h", "nan", "infs", f"{'9' * 400}h"]
)
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="budget must be a time such as 10m, 1h30m or 90s, got"):
        seconds_of(text)


def by_width(seconds_per_width):
    """What stands for measuring: an epoch takes as long as the model is wide."""
    return lambda config, *_: Rates(epoch=seconds_per_width * config.model["dim"], ending=10.0)


def test_the_largest_model_that_sees_its_images_often_enough(monkeypatch, capsys):
    monkeypatch.setattr(budget, "measure", by_width(0.1))
    # epochs of 6.4, 9.6, 12.8, 19.2 and 25.6 s: ten of the second last are 192 s, of the last 256 s
    chosen = fit_budget(config(), "230s", sized=True)
    assert (chosen.model["dim"], chosen.model["depth"], chosen.model["heads"]) == (192, 8, 6)
    assert chosen.epochs == 11
    assert chosen.schedule.warmup_epochs == pytest.approx(1.1)
    assert "an epoch takes 0:19, so 11 epochs, in all about 3:4" in capsys.readouterr().out
    assert fit_budget(config(), "2h", sized=True).model["dim"] == 256
    smallest = fit_budget(config(), "40s", sized=True)
    assert (smallest.model["dim"], smallest.epochs) == (64, 4)


def test_all_sizes_are_measured_on_the_same_data(monkeypatch):
    """Small images are read once."""
    seen = []

    def measure(config, splits, data):
        seen.append(data)
        return Rates(epoch=1.0, ending=1.0)

    monkeypatch.setattr(budget, "measure", measure)
    fit_budget(config(), "2h", sized=True)
    assert len(seen) == len(budget.SIZES)
    assert len(set(map(id, seen))) == 1


def test_a_model_that_was_chosen_stays(monkeypatch):
    monkeypatch.setattr(budget, "measure", by_width(0.1))
    chosen = fit_budget(config(), "230s", sized=False)
    assert chosen.model == MODEL
    assert chosen.epochs in (66, 67, 68), "the time that opening the data takes counts"
    assert chosen.schedule.warmup_epochs == 4, "a warm-up is never prolonged"
    assert fit_budget(config(), "9h", sized=False).epochs == 200


def test_times_that_are_not_enough(monkeypatch):
    monkeypatch.setattr(budget, "measure", by_width(1.0))
    with pytest.raises(
        ValueError, match="budget of 40s is not enough: an epoch takes 0:32, what comes after"
    ):
        fit_budget(config(), "40s", sized=False)


def test_what_has_no_budget(tmp_path):
    with pytest.raises(ValueError, match="budget is measured in one process"):
        fit_budget(config(devices=2), "1m", sized=False)


@pytest.mark.parametrize("batch_size", [16, 512])
def test_what_is_measured_is_what_a_run_does(batch_size, monkeypatch):
    """Batches of whole epochs, and of parts of one."""
    monkeypatch.setattr(budget, "SECONDS", 0.3)
    settings = config(batch_size=batch_size, data=DataConfig(val_fraction=0.2))
    splits = open_data("digits", val_fraction=0.2)
    rates = budget.measure(settings, splits, image_data(settings, splits, build_model(settings, splits)))
    assert 0 < rates.epoch < 60
    assert budget.REPORT < rates.ending < budget.REPORT + 60


@pytest.mark.parametrize(("option", "name"), [("--epochs=3", "epochs"), ("--resume=runs/none", "budget")])
def test_epochs_are_not_chosen_twice(option, name, capsys):
    assert main(["train", "--budget=1m", option]) == 2
    assert f"leave --{name} out" in capsys.readouterr().err


def test_a_run_within_a_budget(tmp_path, capsys, monkeypatch):
    """The command trains, and keeps what was chosen."""
    monkeypatch.setattr(budget, "measure", by_width(0.5))
    settings = [f"--model.{name}={value}" for name, value in SIZES.items()]
    assert main(["train", "--budget=1m", f"--output={tmp_path / 'run'}", "--logger=none", *settings]) == 0
    said = capsys.readouterr().out
    # of 16 s
    epochs = 3
    assert int(re.search(r"so (\d+) epochs", said)[1]) == epochs
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["epochs"] == epochs
    assert saved["model"] == {**saved["model"], **SIZES}
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1 + epochs
