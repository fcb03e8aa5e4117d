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
    Others: timm's `train.py` takes the next image in its place, and ends with status 0; Lightning and
        `Trainer`: `UnidentifiedImageError` at validation; `Trainer` has trained an epoch by then, and keeps
        nothing of it
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
    Others: no counterpart
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


@pytest.mark.parametrize("what", ["data", "output folder"])
def test_a_folder_whose_name_is_no_utf_8(
    what: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of the data, or of the run's folder, is no UTF-8.

    Here: refused before anything else
    Others: Lightning (`default_root_dir`): a `UnicodeEncodeError`; `Trainer` (`output_dir`) takes it
    """
    strange = tmp_path / os.fsdecode(b"ordn\xe9r")
    places = (folder, strange)
    if what == "data":
        places = (folder.rename(strange), tmp_path / "run")
    assert train("--data", places[0], "--output", places[1], *FEW) == 2
    said = capsys.readouterr().err
    assert f"the name of the {what} must be UTF-8, got b'" in said
    assert r"ordn\xe9r" in said
    assert not places[1].exists()


def test_an_image_whose_name_is_no_utf_8(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name of an image to be explained or embedded is no UTF-8.

    Here: pictures and page show escapes; Parquet, which cannot hold it, is refused, `.npz` holds it
    Others: no counterpart
    """
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("L", (8, 8)).save(image, format="PNG")
    assert main(["explain", str(run), str(image), "--json", "--output", str(tmp_path / "seen")]) == 0
    # as JSON has it
    assert r"caf\\udce9.png" in (tmp_path / "seen" / "report.html").read_text()
    assert main(["embed", str(run), str(image), "--output", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["paths"] == [str(image)]
    assert main(["embed", str(run), str(image), "--output", str(tmp_path / "x.parquet")]) == 2
    assert r"caf\udce9.png is not: write a file *.npz instead" in capsys.readouterr().err
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize(
    "command", ["embed RUN RUN/wrong.png --output PLACE.npz", "export RUN --format=pt2 --output PLACE.pt2"]
)
def test_outputs_that_cannot_be_files(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder stands where a file is to be written, or a file where its folder would be.

    Here: a sentence with the path; nothing is written
    Others: transformers' `save_pretrained` to a path where a file stands: logs an error, saves
        nothing and returns as if all were well
    """
    suffix = command[-4:].lstrip("E")
    (tmp_path / f"x{suffix}").mkdir()
    (tmp_path / "y").write_text("")
    for place, message in ((tmp_path / "x", f"x{suffix}"), (tmp_path / "y" / "x", "y")):
        words = [word.replace("RUN", str(run)).replace("PLACE", str(place)) for word in command.split()]
        assert main(words) in (2, 5)
        said = capsys.readouterr().err
        assert str(tmp_path / message) in said
        assert "tmp." not in said.replace(str(tmp_path), "")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("runs", f"x{suffix}", "y")] == []


def test_class_names_that_are_no_cells_of_a_table(folder: Path, tmp_path: Path) -> None:
    """Bars and line breaks in names of classes.

    Here: escaped in `summary.md`
    Others: no counterpart
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
    Others: no counterpart
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


def swap(one: Path, other: Path) -> None:
    """Give two files each other's content."""
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


@pytest.mark.parametrize("split", ["val", "test"])
def test_images_that_are_others_after_training(
    split: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Test or validation images of two classes are exchanged during training.

    Here: the model is saved, no figure is given, the images are named; resuming with the right ones gives it
    Others: no counterpart: none of them records its images
    """
    run, fit = tmp_path / "run", run_module.fit
    places = folder / split / "0" / "0.png", folder / split / "1" / "0.png"

    def fit_and_exchange(*arguments: Any) -> None:
        fit(*arguments)
        swap(*places)

    monkeypatch.setattr(run_module, "fit", fit_and_exchange)
    assert train("--data", folder, "--output", run, *FEW) == 3
    message = capsys.readouterr().err
    assert "has changed during the run, so that its figures would be of other images" in message
    assert all(f"{split}/{label}/0.png" in message for label in "01")
    assert (run / "model" / "model.safetensors").exists()
    assert not (run / "summary.json").exists()
    swap(*places)
    monkeypatch.setattr(run_module, "fit", fit)
    assert train("--resume", run) == 0
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("labels", ["none", "one image's"])
def test_validation_without_labels(
    labels: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No validation image has a label, with `--task multilabel`.

    Here: refused before the first epoch, unless weights are chosen by the loss; no folder is left
    """
    rows = ["image,labels,split"]
    for file in sorted(folder.rglob("*.png")):
        split, label = file.relative_to(folder).parts[:2]
        known = split != "val" or (labels != "none" and file.stem == "0")
        rows.append(f"{file},{label if known else ''},{split}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    run = tmp_path / "run"
    options = ["--task=multilabel", "--data", f"csv:{table}", *FEW]
    if labels == "none":
        assert train("--output", run, *options) == 2
        shown = capsys.readouterr()
        assert "chosen by map on the validation images, but none of these 6 has a label" in shown.err
        assert "epoch 1/" not in shown.out
        assert not run.exists()
        options.append("--select=loss")
    assert train("--output", run, *options) == 0


def test_images_that_do_not_fit_into_a_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images too many for the page that `vit explain` may write, or one that stops it behind another.

    Here: a sentence; no picture is left, and those of an earlier page are as they were
    Others: no counterpart
    """
    image, seen = run / "wrong.png", tmp_path / "seen"
    command = ["explain", str(run), str(image), "--output", str(seen)]
    assert main([*command, "--megabytes=0.01"]) == 2
    assert "allow a larger page, or take fewer images" in capsys.readouterr().err
    assert not seen.exists()
    assert main(command) == 0
    before = {file.name: file.read_bytes() for file in seen.iterdir()}
    other, broken = tmp_path / "wrong.png", tmp_path / "z.png"
    Image.new("L", (8, 8), 255).save(other)
    broken.write_bytes(b"no image")
    stopped = ["explain", str(run), str(other), str(broken), "--on_bad=stop", "--output", str(seen)]
    assert main(stopped) == 3
    assert {file.name: file.read_bytes() for file in seen.iterdir()} == before
