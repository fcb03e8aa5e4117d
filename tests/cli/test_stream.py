"""Runs on a stream of shards: what they say, what they leave, how they go on."""

from pathlib import Path

import pytest
import webdataset
from sklearn.datasets import load_digits

from tests.cli.conftest import TINY, train
from vit_pytorch.cli import Status, main
from vit_pytorch.training.history import read_rows


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits 0 to 2 in three shards, the last one for validation."""
    folder = tmp_path_factory.mktemp("shards")
    digits = load_digits()
    for number in range(3):
        with webdataset.TarWriter(str(folder / f"{number}.tar")) as writer:
            for i in range(60 * number, 60 * number + 60):
                image = (digits.images[i] * 15).astype("uint8")
                writer.write({"__key__": f"{i}", "png": image, "cls": int(digits.target[i])})
    return folder


def options(shards: Path) -> list[str]:
    return [
        f"--data=stream:pipe:cat {shards}/{{0..1}}.tar",
        "--epoch_samples=128",
        "--data.classes=10",
        f"--data.val={shards}/2.tar",
        "--workers=1",
        "--logger=none",
        *TINY,
    ]


def test_a_run_and_how_it_goes_on(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train("--output", run, "--epochs=1", *options(shards)) == 0
    said = capsys.readouterr().out
    assert said.count("an epoch is 128 samples drawn from 2 shards") == 1
    assert "128 to train, 60 to validate" in said
    assert train("--resume", run, "--epochs=2") == 0
    assert "goes on at its number of samples, with other samples" in capsys.readouterr().out
    assert [row["step"] for row in read_rows(run / "metrics.csv")] == [2, 4]
    assert main(["evaluate", str(run), "--split=val"]) == 0
    assert "of 60 images" in capsys.readouterr().out


def test_a_pretraining(shards: Path, tmp_path: Path) -> None:
    unlabelled = [option for option in options(shards) if not option.startswith("--data.classes")]
    arguments = ["pretrain", "--accelerator=cpu", f"--output={tmp_path / 'run'}", "--epochs=1", *unlabelled]
    assert main([*arguments, "--method.decoder_dim=16", "--method.decoder_depth=1"]) == 0
    assert read_rows(tmp_path / "run" / "metrics.csv")[0]["val/loss"] > 0


def test_what_is_missing_is_one_sentence(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in {
        "--epoch_samples": "how many images make an epoch (--epoch_samples N",
        "--data.classes": "(--data.classes FILE, --data.classes 1000)",
        "--data.val": "(--data.val PATTERN)",
    }.items():
        left = [option for option in options(shards) if not option.startswith(name)]
        assert train(*left) == Status.DATA
        assert message in capsys.readouterr().err
