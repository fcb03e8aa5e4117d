"""Data that have changed since a run began: its test images are never those that it was trained on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from vit_pytorch.cli import main
from vit_pytorch.data import read_record
from vit_pytorch.data.record import RECORD
from vit_pytorch.training.history import read_rows

TINY = ["--recipe=light", "--model.dim=16", "--model.depth=1", "--model.heads=1", "--epochs=2", "--ema=null"]
TINY += ["--schedule.warmup_epochs=0", "--workers=0", "--accelerator=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred digits, ten a class."""
    folder = tmp_path_factory.mktemp("images")
    data = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir()
        for index in np.flatnonzero(data.target == label)[:10]:
            Image.fromarray((data.images[index] * 15).astype(np.uint8)).save(
                folder / str(label) / f"{index}.png"
            )
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run on them."""
    run = folder.parent / f"{folder.name}-run"
    assert main(["train", f"--data={folder}", f"--output={run}", *TINY]) == 0
    return run


@pytest.fixture
def changed(folder: Path, trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The images with one more, and a run that began without it."""
    images, run = tmp_path / "images", tmp_path / "run"
    shutil.copytree(folder, images)
    shutil.copytree(trained, run, symlinks=True)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(str(folder), str(images)), encoding="utf-8")
    shutil.copy(images / "3" / "3.png", images / "3" / "0.png")
    picture = Image.open(images / "3" / "0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(images / "3" / "0.png")
    return images, run


def test_a_run_records_its_images(folder: Path, trained: Path) -> None:
    record = read_record(trained / RECORD)
    assert sorted(image.name for image in record.images) == sorted(
        path.relative_to(folder).as_posix() for path in folder.glob("*/*.png")
    )
    counts = {
        split: sum(image.split == split for image in record.images) for split in ("train", "val", "test")
    }
    assert counts == {"train": 70, "val": 10, "test": 20}


def test_evaluation_names_what_changed(
    changed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = changed
    assert main(["evaluate", str(run)]) == 3
    message = capsys.readouterr().err
    assert "has changed since its images were recorded: added (1: 3/0.png)" in message
    assert "--changed keep" in message


def test_evaluation_keeps_the_splits_when_told(
    changed: tuple[Path, Path], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = changed
    capsys.readouterr()
    assert main(["evaluate", str(trained), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    with pytest.warns(UserWarning, match=r"added \(1: 3/0\.png\)"):
        assert main(["evaluate", str(run), "--changed=keep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["confusion"] == before["confusion"]


def test_a_run_is_not_resumed_on_other_images(
    changed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = changed
    written = (run / "config.yaml").read_bytes()
    assert main(["train", f"--resume={run}", "--epochs=3"]) == 3
    assert "has changed since its images were recorded: added (1: 3/0.png)" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == written
    with pytest.warns(UserWarning, match=r"added \(1: 3/0\.png\)"):
        assert main(["train", f"--resume={run}", "--epochs=3", "--data.changed=keep"]) == 0
    record = {image.name for image in read_record(run / RECORD).images}
    assert "3/0.png" not in record
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["test"]["images"] == 20


def test_a_run_keeps_its_splits(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"--resume={trained}", "--epochs=3", "--data.split_seed=5"]) == 2
    assert "a run goes on as it began: data.split_seed was None, got 5" in capsys.readouterr().err


def test_a_batch_size_that_follows_the_images_is_recorded(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"--data={folder}", f"--output={tmp_path / 'run'}", *TINY, "--epochs=1"]) == 0
    plan = "plan   1 epochs of 8 steps in batches of 8 (of 64 it would be 1: --batch_size decides), "
    assert plan in capsys.readouterr().out
    assert [row["step"] for row in read_rows(trained / "metrics.csv")][:2] == [8, 16]
    config = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
    assert (config["batch_size"], config["min_steps_per_epoch"]) == (8, None)
    # a run goes on in the batches that it began with, whatever becomes of its images
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    assert main(["train", f"--resume={tmp_path / 'copy'}", "--epochs=4", "--min_steps_per_epoch=2"]) == 2
    assert "min_steps_per_epoch was None, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["run", "model", "probe"])
def test_other_data_with_images_of_the_run(
    how: str, folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are known by their contents; those of the run's test split are no news."""
    record = read_record(trained / RECORD)
    chosen = {
        split: [image for image in record.images if image.split == split][:size]
        for split, size in {"train": 4, "val": 1, "test": 5}.items()
    }
    other = tmp_path / "other"
    for label in range(10):
        for split in ("train", "test"):
            (other / split / str(label)).mkdir(parents=True)
            picture = Image.effect_noise((8, 8), 10 * label + len(split))
            for i in range(2):
                picture.rotate(90 * i).save(other / split / str(label) / f"own{i}.png")
    for images in chosen.values():
        for image in images:
            shutil.copy(folder / image.name, other / "test" / image.label / f"new {Path(image.name).name}")
    options = {
        "run": [trained],
        "model": [trained / "model"],
        "probe": [trained, "--probe=knn", "--neighbours=5"],
    }
    command = ["evaluate", *map(str, options[how]), f"--data={other}", "--json"]
    said = (
        rf"of 30 images of {other}, \S+ was trained on \(4: .*\) and validated on \(1: .*\): figures on those"
    )
    capsys.readouterr()
    with pytest.warns(UserWarning, match=said):
        assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    names = {
        split: [f"test/{image.label}/new {Path(image.name).name}" for image in images]
        for split, images in chosen.items()
    }
    assert sorted(found["images_trained_on"]) == sorted(names["train"])
    assert found["images_validated_on"] == names["val"]
    for image in (*chosen["train"], *chosen["val"]):
        (other / "test" / image.label / f"new {Path(image.name).name}").unlink()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["images_trained_on"] == []
