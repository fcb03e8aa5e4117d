"""Training by the real command: what a run leaves behind, and the faults it survives."""

import csv
import json
import os
import shutil
import signal
import time
import warnings
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
import webdataset
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import forked
from tests.cli.conftest import TINY, Vit, command, environment, train
from vit_pytorch.cli import main
from vit_pytorch.training import checkpoints
from vit_pytorch.training.history import read_lines, read_rows

PICTURES = ("curves.png", "confusion.png", "wrong.png", "reliability.png")


def test_a_run_leaves_everything(digits_run: Path) -> None:
    rows = read_rows(digits_run / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert {"step", "lr", "train/loss", "val/loss", "val/accuracy", "seconds"} <= rows[0].keys()
    for name in PICTURES:
        assert (digits_run / name).read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((digits_run / "config.yaml").read_text())["epochs"] == 3
    assert {"config.json", "model.safetensors"} <= {path.name for path in (digits_run / "model").iterdir()}
    assert (digits_run / "checkpoints" / "best").exists()
    events = EventAccumulator(str(digits_run / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("val/accuracy")) == 3


def test_the_summary_adds_up(digits_run: Path) -> None:
    summary = json.loads((digits_run / "summary.json").read_text())
    assert summary["images"] == {"train": 1295, "val": 142, "test": 360}
    confusion = summary["test"]["confusion"]
    right = sum(confusion[i][i] for i in range(10))
    assert sum(map(sum, confusion)) == summary["test"]["images"] == 360
    assert summary["test"]["accuracy"] == pytest.approx(right / 360)
    assert summary["test"]["class_accuracy"]["3"] == pytest.approx(confusion[3][3] / sum(confusion[3]))
    rows = read_rows(digits_run / "metrics.csv")
    best = max(rows, key=lambda row: (row["val/accuracy"], -row["val/objective"]))
    assert summary["best_checkpoint"] == f"epoch-{int(best['epoch']):04}"
    assert summary["val"]["accuracy"] == pytest.approx(best["val/accuracy"], abs=1e-6)
    assert f"{right / 360:.2%}" in (digits_run / "summary.md").read_text()


def test_the_configuration_of_a_run_gives_the_same_run(digits_run: Path, tmp_path: Path) -> None:
    assert train("--config", digits_run / "config.yaml", "--output", tmp_path / "again") == 0
    first, again = (read_rows(folder / "metrics.csv") for folder in (digits_run, tmp_path / "again"))
    for row in (*first, *again):
        row.pop("seconds")
    assert again == first
    config, other = ((folder / "config.yaml").read_text() for folder in (digits_run, tmp_path / "again"))
    assert config == other


def test_learns_the_digits(tmp_path: Path) -> None:
    shorter = ["--epochs=14", "--schedule.warmup-epochs=1", "--model.depth=2"]
    assert train("--output", tmp_path / "run", *shorter) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["accuracy"] >= 0.9


def test_trains_on_a_folder_of_images(image_folder: Path, tmp_path: Path) -> None:
    small = ["--model.image-size=20", "--workers=0", "--batch-size=8", "--epochs=2"]
    assert train("--data", image_folder, "--output", tmp_path / "run", *TINY, *small) == 0
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["default_cfg"]["label_names"] == ["one", "two", "zero"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images"]["test"] == 12


def test_trains_on_idx_files_with_two_accumulated_batches(idx_folder: Path, tmp_path: Path) -> None:
    options = ["--model.image-size=20", "--epochs=1", "--accumulate=2", "--recipe=light"]
    assert train(f"--data=idx:{idx_folder}", "--output", tmp_path / "run", *TINY, *options) == 0
    (row,) = read_rows(tmp_path / "run" / "metrics.csv")
    assert row["step"] == 270 // 32 // 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["images"] == 100


def check_run(run: Path, vit: Vit, **sizes: int) -> None:
    """A run on few images of three classes is whole, and measuring it again gives the same."""
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images"] == sizes
    assert list(summary["test"]["class_accuracy"]) == ["zero", "one", "two"]
    done = vit("evaluate", run, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["confusion"] == summary["test"]["confusion"]


FEW = ["--model.image-size=16", "--batch-size=8", "--epochs=1"]


def test_trains_on_a_dataset_of_hugging_face(image_folder: Path, tmp_path: Path, vit: Vit) -> None:
    names = ["zero", "one", "two"]
    rows = {
        "image": [
            {"bytes": (image_folder / name / f"{i}.png").read_bytes()} for i in range(20) for name in names
        ],
        "label": [0, 1, 2] * 20,
    }
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    whole = datasets.Dataset.from_dict(rows, features=kinds)
    splits = {"train": whole.select(range(48)), "test": whole.select(range(48, 60))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")

    done = vit("train", f"--data=hf:{tmp_path / 'saved'}", "--output=run", *TINY, *FEW)
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run", vit, train=42, val=6, test=12)


def test_trains_on_shards_of_webdataset(image_folder: Path, tmp_path: Path, vit: Vit) -> None:
    names = ["zero", "one", "two"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    for shard in range(4):
        with webdataset.TarWriter(
            str(tmp_path / f"{'val' if shard == 2 else 'train'}-{shard}.tar")
        ) as writer:
            for i in range(5 * shard, 5 * shard + 5):
                for label, name in enumerate(names):
                    image = (image_folder / name / f"{i}.png").read_bytes()
                    writer.write({"__key__": f"{name}{i}", "png": image, "cls": label})
    (tmp_path / "train-3.tar").rename(tmp_path / "test-3.tar")

    pattern = f"wds:{tmp_path}/train-{{0..1}}.tar,{tmp_path}/val-*.tar,{tmp_path}/test-3.tar"
    done = vit("train", "--data", pattern, "--output=run", *TINY, *FEW)
    assert done.returncode == 0, done.stderr
    check_run(tmp_path / "run", vit, train=30, val=15, test=15)


def test_folders_are_new_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train("--epochs=1", *TINY) == 0
    first, second = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert "digits-vit_tiny_patch16_224" in first
    assert first != second


def test_second_run_in_the_same_folder_is_refused(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (digits_run / "metrics.csv").read_bytes()
    assert train("--output", digits_run, *TINY) == 5
    assert "already holds a run" in capsys.readouterr().err
    assert (digits_run / "metrics.csv").read_bytes() == before


def test_output_that_cannot_be_written_stops_before_training(tmp_path: Path, vit: Vit) -> None:
    (tmp_path / "file").write_text("in the way")
    done = vit("train", "--output", tmp_path / "file" / "run", *TINY)
    assert done.returncode == 5
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "epoch" not in done.stdout


@pytest.mark.parametrize("arguments", [["--resume"], ["--resume", "nowhere"], ["--resume", "."]])
def test_nothing_to_resume(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(*arguments) == 5
    assert "nothing to resume" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoint_is_not_resumed(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((digits_run / "config.yaml").read_bytes())
    assert train("--resume", tmp_path) == 5
    assert "nothing to resume" in capsys.readouterr().err


def test_a_finished_run_is_not_resumed(digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--resume", digits_run) == 5
    assert "finished its 3 epochs" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted(
    number: signal.Signals, digits_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", "--accelerator=cpu", "--output", run, "--epochs=3", *TINY)
    with forked.Popen(command(*arguments), env=environment()) as process:
        deadline = time.monotonic() + 200
        while not (run / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert "resume from" in errors
    assert "Traceback" not in errors
    assert not (run / "summary.json").exists()
    assert train("--resume", run) == 0
    for row, expected in zip(
        read_rows(run / "metrics.csv"), read_rows(digits_run / "metrics.csv"), strict=True
    ):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}
    with (run / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_resuming_hashes_a_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert train("--output", run, "--epochs=1", *TINY) == 0
    hashed: Counter[str] = Counter()
    plain = checkpoints.file_sha256

    def counting(path: Path) -> str:
        hashed[f"{path.parent.name}/{path.name}"] += 1
        return plain(path)

    monkeypatch.setattr(checkpoints, "file_sha256", counting)
    assert train("--resume", run, "--epochs=2") == 0
    assert (run / "checkpoints" / "best").resolve().name == "epoch-0002"
    folders = ("epoch-0001", ".epoch-0002.tmp", "epoch-0002")
    assert hashed == {
        f"{folder}/{name}": 1 for folder in folders for name in ("model.safetensors", "training.pt")
    }


def test_resumes_the_latest_run_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--epochs=1", *TINY) == 0
    assert train("--resume") == 5
    assert "finished its 1 epochs" in capsys.readouterr().err


def test_data_that_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--data=nowhere", "--output", tmp_path / "run") == 3
    assert "no such folder: nowhere" in capsys.readouterr().err
    assert not (tmp_path / "run" / ".run").exists()


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("moths.csv", "it is a file: give csv:moths.csv"),
        ("shards.tar", "it is a file: give wds:shards.tar"),
        ("photos.zip", "it is a file, unpack it if it is packed"),
    ],
)
def test_data_that_are_a_file(
    name: str, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert train("--data", name) == 3
    assert f"no such folder: {name}; {cure}" in capsys.readouterr().err
    # without asking the Hub for it
    assert train("--data", f"hf:{name}") == 3
    assert f"hf:{name} is neither a folder nor a name on the Hub; {cure}" in capsys.readouterr().err


def test_two_processes_make_one_run(tmp_path: Path, vit: Vit) -> None:
    done = vit("train", "--accelerator=cpu", "--devices=2", "--strategy=ddp", "--epochs=1", *TINY)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    (row,) = read_rows(run / "metrics.csv")
    assert row["step"] == 1295 // 64
    assert json.loads((run / "summary.json").read_text())["test"]["images"] == 360


def test_options_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another precision with the recipe's averaged weights, two loggers, a profile."""
    options = ["--precision=bf16-true", "--logger=tensorboard,csv", "--profile=2", "--epochs=1", *TINY]
    assert train("--output", tmp_path / "run", *options) == 0
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file()
    assert json.loads((tmp_path / "run" / "profile" / "trace.json").read_text())["traceEvents"]
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["event"] for line in lines] == ["step", "epoch"]
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("vit    ")
    assert shown[0].endswith("cpu x 1, bf16-true; reading digits")
    assert train("--output", tmp_path / "other", "--logger=comet") == 2
    assert "a logger is one of tensorboard, csv, wandb, mlflow, got 'comet'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_warnings_come_once(verb: str, image_folder: Path, tmp_path: Path) -> None:
    """Each epoch, probe and report reads images again, and the report builds the model anew."""
    for split in ("train", "val", "test"):
        shutil.copytree(image_folder, tmp_path / "photos" / split)
        (tmp_path / "photos" / split / "two").rename(tmp_path / "photos" / split / "One")
        (tmp_path / "photos" / split / "one" / "bad.png").write_bytes(b"no image")
    options = ["--data", tmp_path / "photos", "--data.on_bad=skip", "--output", tmp_path / "run", *TINY]
    options += ["--epochs=2", "--workers=0", "--accelerator=cpu", "--batch-size=16", "--img_size=16"]
    options += ["--model.patch_size=4"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main([verb, *map(str, options)]) == 0
    bad = sorted(str(tmp_path / "photos" / split / "one" / "bad.png") for split in ("train", "val", "test"))
    assert sorted(str(warning.message).split(":")[0] for warning in said) == [
        "16 patches are few for attention to work with",
        (
            "names of classes differ only in case, spaces, hyphens, encoding, letters that look alike or how "
            "a number is written"
        ),
        *(f"skipped bad image {name}" for name in bad),
    ]
    assert sorted(json.loads((tmp_path / "run" / "summary.json").read_text())["skipped_images"]) == bad
    page = (tmp_path / "run" / "summary.md").read_text()
    assert "- left out, since they could not be decoded: 3: " in page
    assert all(f"{name} (" in page for name in bad)


def test_a_copy_without_links_is_resumed(digits_run: Path, tmp_path: Path) -> None:
    """Its `last` and `best` are folders, as copies of Windows, archives and object storage have them."""
    copy = Path(shutil.copytree(digits_run, tmp_path / "copy", symlinks=False))
    assert train("--resume", copy, "--epochs=4") == 0
    assert os.readlink(copy / "checkpoints" / "last") == "epoch-0004"
    assert json.loads((copy / "summary.json").read_text())["epochs"] == 4
