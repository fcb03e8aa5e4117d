"""An option that is given when a run is resumed acts, or is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import TINY, train
from vit_pytorch.training.checkpoints import MANIFEST
from vit_pytorch.training.config import RESUMABLE
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.runs import latest_run


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.dim=32", "model.dim was 16, got 32"),
        ("--model.depth=2", "model.depth was 1, got 2"),
        ("--model.image_size=16", "model.image_size was"),
        ("--model=deit_tiny_patch16_224", "model.name was 'vit_tiny_patch16_224', got 'deit_tiny"),
        ("--model.positions=sincos", "model.positions was"),
        ("--optimizer.name=sgd", "optimizer.name was 'adamw', got 'sgd'"),
        ("--optimizer.layer_decay=0.5", "optimizer.layer_decay was None, got 0.5"),
        ("--batch-size=32", "batch_size was 64, got 32"),
        ("--seed=1", "seed was 0, got 1"),
        ("--data.channels=3", "data.channels was None, got 3"),
        ("--data.split_seed=5", "data.split_seed was None, got 5"),
        ("--augmentation.flip=0.5", "augmentation.flip was 0.0, got 0.5"),
        ("--label_smoothing=0.3", "label_smoothing was"),
        ("--config=other.yaml", "leave --config out"),
        ("--recipe=light", "leave --recipe out"),
        ("--output=elsewhere", "leave --output out"),
    ],
)
def test_an_option_that_cannot_act(
    option: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that cannot act any more.

    Here: refused, with what it was and the list of those that may change
    Others: another batch size: Lightning trains on with it without a word; `Trainer` prints the
        difference, and two epochs with batches twice as large ended at once, at the steps of one
        epoch. Another seed: `Trainer` goes on without a word
    """
    written = (run / "config.yaml").read_bytes()
    assert train("--resume", run, "--epochs=3", option) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    if "leave" not in message:
        assert f"What may be changed when it is resumed is {', '.join(RESUMABLE)}" in said
    assert (run / "config.yaml").read_bytes() == written


def test_options_that_act(run: Path) -> None:
    """An option that acts.

    Here: acts from the next step on, and is written to `config.yaml`
    Others: Lightning and transformers' `Trainer`: another learning rate is left aside without a word, the
        checkpoint's stays
    """
    options = ["--optimizer.lr=0.001", "--schedule.min_lr=0.001", "--save-every=7", "--logger=none"]
    assert train("--resume", run, "--epochs=3", *options) == 0
    *before, last = read_rows(run / "metrics.csv")
    assert last["lr"] == pytest.approx(0.001)
    assert all(row["lr"] != pytest.approx(0.001) for row in before)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["optimizer"]["lr"] == 0.001
    assert (config["epochs"], config["save_every"], config["logger"]) == (3, 7, "none")


def test_the_schedule_of_an_extended_run(run: Path, tmp_path: Path) -> None:
    """A finished run is extended.

    Here: the schedule is that of the new length
    Others: transformers' `Trainer`, two epochs extended to four: the first step has a rate of 0, the end of
        the old schedule; the others follow the new one
    """
    assert train("--resume", run, "--epochs=4") == 0
    assert train("--output", tmp_path / "long", "--epochs=4", *TINY) == 0
    extended, long = (read_rows(folder / "metrics.csv") for folder in (run, tmp_path / "long"))
    assert [row["lr"] for row in extended[2:]] == [row["lr"] for row in long[2:]]
    assert extended[1]["lr"] != long[1]["lr"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 64", "batch_size: 32", "batch_size was 64, got 32"),
        ("seed: 0", "seed: 5", "seed was 0, got 5"),
        ("dim: 16", "dim: 32", "model.dim was 16, got 32"),
        ("val_fraction: 0.1", "val_fraction: 0.3", "data.val_fraction was 0.1, got 0.3"),
    ],
)
def test_an_edited_configuration(
    old: str, new: str, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that cannot act any more is edited in the run's `config.yaml`.

    Here: refused like an option: the checkpoint holds the settings with which it was written
    Others: no counterpart: their settings are those of the program
    """
    file = run / "config.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    assert train("--resume", run, "--epochs=3") == 2
    assert message in capsys.readouterr().err


def test_a_checkpoint_without_settings(run: Path) -> None:
    """A checkpoint of an earlier version, which does not hold the settings with which it was written.

    Here: resumed, held against `config.yaml`
    Others: no counterpart
    """
    file = run / "checkpoints" / "last" / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["settings"], manifest["written"]
    file.write_text(json.dumps(manifest))
    assert train("--resume", run, "--epochs=3", "--seed=4") == 2
    assert train("--resume", run, "--epochs=3") == 0


def test_the_latest_run_of_copies(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are copied, which changes the times of their files, before `--resume` without a name.

    Here: the latest is that whose checkpoint says so
    """
    older, newer = run.parent / "older", run
    shutil.copytree(run, older, symlinks=True)
    set_time(older, 1e9)
    assert (older / "checkpoints" / "last").stat().st_mtime >= (
        newer / "checkpoints" / "last"
    ).stat().st_mtime
    monkeypatch.chdir(run.parent.parent)
    assert latest_run("runs") == Path("runs") / run.name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (4e9, "the clock is behind the checkpoint that runs/digits wrote at "),
        (1e9, "runs/(copy|digits) and runs/(copy|digits) have the same latest checkpoint"),
    ],
)
def test_a_latest_run_that_is_not_known(
    written: float,
    message: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The clock was set back, or a run copied, before `--resume` without a name.

    Here: refused; the run is to be named
    """
    set_time(run, 1e9)
    shutil.copytree(run, run.parent / "copy", symlinks=True)
    set_time(run, written)
    monkeypatch.chdir(run.parent.parent)
    assert train("--resume") == 5
    assert re.search(message, capsys.readouterr().err)


def set_time(run: Path, written: float) -> None:
    """Write into the last checkpoint of a run when it was written."""
    file = run / "checkpoints" / "last" / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "written": written}))
