"""What can be known before the first epoch is said then; what cannot never costs the trained model."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.cli.conftest import TINY, train
from vit_pytorch.cli import main
from vit_pytorch.create import load_model
from vit_pytorch.data import open_data
from vit_pytorch.training import pictures as pictures_module
from vit_pytorch.training import run as run_module

FEW = [*TINY, "--model.image-size=20", "--workers=0", "--batch-size=8", "--epochs=1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Digits as PNG files in folders of splits: two classes."""
    digits = load_digits()
    for split, part in {"train": slice(0, 12), "val": slice(12, 15), "test": slice(15, 18)}.items():
        for label in (0, 1):
            place = tmp_path / "images" / split / str(label)
            place.mkdir(parents=True)
            for i, image in enumerate(digits.images[digits.target == label][part]):
                Image.fromarray((image * 15).astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_bad_image_that_is_no_training_image(
    split: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad validation or test image.

    Here: found before the first epoch; no folder is left
    """
    bad = folder / split / "1" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    run = tmp_path / "run"
    assert train("--data", folder, "--output", run, *FEW) == 3
    shown = capsys.readouterr()
    assert str(bad) in shown.err
    assert "epoch 1/" not in shown.out
    assert not run.exists()
    with pytest.warns(UserWarning, match="skipped bad image"):
        assert train("--data", folder, "--output", run, "--data.on_bad=skip", *FEW) == 0
    assert list(json.loads((run / "summary.json").read_text())["skipped_images"]) == [str(bad)]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_pictures_of_other_channels_than_grey_and_rgb(channels: int, tmp_path: Path) -> None:
    """Images of other channels than grey and RGB.

    Here: shown by the mean over their channels
    """
    run = tmp_path / "run"
    assert train("--output", run, f"--data.channels={channels}", "--epochs=1", *TINY) == 0
    assert (run / "wrong.png").read_bytes().startswith(b"\x89PNG")


def test_a_class_name_that_is_no_utf_8(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of a class is no UTF-8.

    Here: refused before anything else
    Others: torchvision's `ImageFolder` and timm's dataset take it
    """
    for split in ("train", "val", "test"):
        (folder / split / "1").rename(folder / split / os.fsdecode(b"caf\xe9"))
    assert train("--data", folder, "--output", tmp_path / "run", *FEW) == 3
    assert r"names of classes must be UTF-8, got b'caf\xe9'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be UTF-8"):
        open_data(str(folder))


def test_class_names_that_are_no_cells_of_a_table(folder: Path, tmp_path: Path) -> None:
    """Bars and line breaks in names of classes.

    Here: escaped in `summary.md`
    """
    for split in ("train", "val", "test"):
        (folder / split / "1").rename(folder / split / "a|b\nc")
    assert train("--data", folder, "--output", tmp_path / "run", *FEW) == 0
    page = (tmp_path / "run" / "summary.md").read_text()
    assert r"| a\|b c |" in page


@pytest.mark.parametrize("picture", ["draw_curves", "draw_confusion", "draw_wrong"])
def test_a_picture_that_cannot_be_drawn(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that cannot be drawn.

    Here: model, summary and the other pictures are written; resuming draws it
    """

    def fail(*_: Any) -> None:
        raise TypeError("no such shape")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(pictures_module, picture, fail)
        assert train("--output", run, "--epochs=1", *TINY) == 1
    assert "unexpected TypeError: no such shape; --debug shows" in capsys.readouterr().err
    assert load_model(run).num_classes == 10
    assert json.loads((run / "summary.json").read_text())["epochs"] == 1
    assert train("--resume", run) == 0
    assert (run / f"{picture.removeprefix('draw_')}.png").exists()


def test_a_test_image_that_goes_bad_during_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test image that goes bad during training.

    Here: the model is saved; resuming writes the report
    """
    run, fit = tmp_path / "run", run_module.fit
    bad = folder / "test" / "0" / "0.png"
    whole = bad.read_bytes()

    def fit_and_spoil(*arguments: Any) -> None:
        fit(*arguments)
        bad.write_bytes(whole[:60])

    monkeypatch.setattr(run_module, "fit", fit_and_spoil)
    assert train("--data", folder, "--output", run, *FEW) == 3
    assert str(bad) in capsys.readouterr().err
    shutil.copy(folder / "test" / "0" / "1.png", tmp_path / "x.png")
    assert main(["predict", str(run), str(tmp_path / "x.png")]) == 0
    bad.write_bytes(whole)
    monkeypatch.setattr(run_module, "fit", fit)
    assert train("--resume", run) == 0
    assert (run / "summary.json").exists()
