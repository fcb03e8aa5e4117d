"""Several labels and values by the real command: train, resume, evaluate, predict, explain, fine-tune."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from tests.cli.conftest import TINY, train
from tests.cli.test_use import answer
from vit_pytorch import Predictor
from vit_pytorch.cli import main
from vit_pytorch.distill import DistillableViT
from vit_pytorch.export.deploy import load_exported
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.saved import load_classifier

Capture = pytest.CaptureFixture[str]
DIGITS = {"even": (0, 2, 4, 6, 8), "large": (5, 6, 7, 8, 9), "round": (0, 6, 8, 9)}
LABELS = tuple(DIGITS)
SMALL = [*TINY, "--model.image-size=20", "--recipe=light", "--workers=0", "--batch-size=16", "--ema=null"]


def labels_of(digit: int) -> list[str]:
    """What is true of a digit; nothing of 1 and 3."""
    return [
        name
        for name, digits in zip(LABELS, ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (0, 6, 8, 9)), strict=True)
        if digit in digits
    ]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 120 digits: their labels, how much ink they have, and their value."""
    folder = tmp_path_factory.mktemp("table")
    digits = load_digits()
    with (folder / "digits.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels", "ink", "digit", "split"])
        for i, (image, digit) in enumerate(
            zip(digits.images[:120], digits.target[:120].tolist(), strict=True)
        ):
            Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{i}.png")
            split = "test" if i % 6 == 0 else "val" if i % 6 == 1 else "train"
            rows.writerow([f"{i}.png", ";".join(labels_of(digit)), f"{image.sum():.0f}", digit, split])
    return folder / "digits.csv"


@pytest.fixture(scope="module")
def label_run(table: Path) -> Path:
    run = table.parent / "labels"
    options = ["--task=multilabel", "--data.label_separator=;", "--epochs=6", "--loss=asymmetric"]
    assert train(f"--data=csv:{table}", "--output", run, *options, *SMALL) == 0
    return run


@pytest.fixture(scope="module")
def value_run(table: Path) -> Path:
    run = table.parent / "values"
    options = ["--task=regression", "--data.label_column=ink,digit", "--epochs=6", "--select=mae"]
    assert train(f"--data=csv:{table}", "--output", run, *options, *SMALL) == 0
    return run


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_a_run_of_several_labels(label_run: Path) -> None:
    summary = summary_of(label_run)
    assert (summary["task"], summary["selected_by"]) == ("multilabel", "map")
    assert list(summary["test"]["labels"]) == list(LABELS)
    assert summary["test"]["images"] == 20
    assert {"curves.png", "precision_recall.png"} == set(summary["pictures"])
    for name in summary["pictures"]:
        assert (label_run / name).read_bytes().startswith(b"\x89PNG")
    rows = read_rows(label_run / "metrics.csv")
    assert {"val/loss", "val/map", "val/f1", "val/macro_f1"} <= rows[0].keys()
    best = max(rows, key=lambda row: (row["val/map"], -row["val/loss"]))
    assert summary["best_checkpoint"] == f"epoch-{int(best['epoch']):04}"
    assert summary["val"]["map"] == pytest.approx(best["val/map"], abs=1e-6)
    page = (label_run / "summary.md").read_text()
    assert f"mAP {summary['test']['map']:.2%}" in page
    assert "| round |" in page


def test_thresholds_are_chosen_on_validation_and_kept_with_the_model(label_run: Path) -> None:
    problem: Any = load_classifier(label_run).problem
    assert problem.names == LABELS
    assert problem.thresholds != (0.5, 0.5, 0.5)
    chosen = [each["threshold"] for each in summary_of(label_run)["val"]["labels"].values()]
    assert list(problem.thresholds) == pytest.approx(chosen)
    saved = json.loads((label_run / "model" / "config.json").read_text())["default_cfg"]["problem"]
    assert saved["task"] == "multilabel"


def test_a_run_of_values(value_run: Path) -> None:
    summary = summary_of(value_run)
    assert (summary["task"], summary["selected_by"]) == ("regression", "mae")
    assert list(summary["test"]["values"]) == ["ink", "digit"]
    assert (value_run / "predicted.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(value_run / "metrics.csv")
    best = min(rows, key=lambda row: row["val/mae"])
    assert summary["best_checkpoint"] == f"epoch-{int(best['epoch']):04}"
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    mean = sum(each["mae"] for each in summary["val"]["values"].values()) / 2
    assert mean == pytest.approx(best["val/mae"], rel=1e-5)


def test_targets_are_standardised_by_the_training_split(value_run: Path, table: Path) -> None:
    with table.open() as file:
        ink = [float(row["ink"]) for row in csv.DictReader(file) if row["split"] == "train"]
    problem: Any = load_classifier(value_run).problem
    assert problem.mean[0] == pytest.approx(np.mean(ink), rel=1e-6)
    assert problem.std[0] == pytest.approx(np.std(ink), rel=1e-6)


@pytest.mark.parametrize("run", ["label_run", "value_run"])
def test_evaluating_gives_the_summarys_figures(
    run: str, request: pytest.FixtureRequest, capsys: Capture
) -> None:
    folder = request.getfixturevalue(run)
    found = answer(capsys, "evaluate", folder)
    expected = summary_of(folder)["test"]
    key = "labels" if run == "label_run" else "values"
    for name, figures in expected[key].items():
        assert found[key][name] == pytest.approx(figures, rel=1e-4)
    assert main(["evaluate", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test: ")
    assert len(lines) == 2 + len(expected[key])


def test_predicting_labels(label_run: Path, table: Path, capsys: Capture) -> None:
    image = table.parent / "0.png"
    (found,) = answer(capsys, "predict", label_run, image, "--top=3")
    thresholds = dict(zip(LABELS, load_classifier(label_run).problem.thresholds, strict=True))
    reached = {each["label"] for each in found["top"] if each["probability"] >= thresholds[each["label"]]}
    assert set(found["labels"]) == reached
    assert main(["predict", str(label_run), str(image), "--csv=-", "--top=1"]) == 0
    header, row = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["path", "labels", "label", "probability"]
    assert row[1] == "|".join(found["labels"])
    assert main(["predict", str(label_run), str(image), "--top=1"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["image", "labels", "1."]


def test_predicting_values(value_run: Path, table: Path, capsys: Capture) -> None:
    image = table.parent / "0.png"
    (found,) = answer(capsys, "predict", value_run, image)
    saved: Any = load_classifier(value_run)
    assert found["values"].keys() == {"ink", "digit"}
    # undone: in the units of the table, not in standard deviations
    assert abs(found["values"]["ink"] - saved.problem.mean[0]) < 5 * saved.problem.std[0]
    assert found["values"]["ink"] > 50
    assert main(["predict", str(value_run), str(image), "--csv=-"]) == 0
    header, row = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["path", "ink", "digit"]
    assert float(row[1]) == pytest.approx(found["values"]["ink"], rel=1e-5)
    assert main(["predict", str(value_run), str(image), "--top=2"]) == 2
    assert "top is for classes and labels; this model gives ink, digit" in capsys.readouterr().err


@pytest.mark.parametrize(("run", "key"), [("label_run", "top"), ("value_run", "values")])
def test_explaining(
    run: str,
    key: str,
    table: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: Capture,
) -> None:
    folder = request.getfixturevalue(run)
    found: Any = answer(capsys, "explain", folder, table.parent / "0.png", f"--output={tmp_path}")
    (predicted,) = answer(capsys, "predict", folder, table.parent / "0.png")
    (explained,) = found["images"]
    if key == "values":
        assert explained["values"] == pytest.approx(predicted["values"], rel=1e-4)
        page = (tmp_path / "report.html").read_text()
        assert f'"text":"{explained["values"]["ink"]:.6g}"' in page
    else:
        assert explained["top"][0]["label"] == predicted["top"][0]["label"]
        assert explained["labels"] == predicted["labels"]
        assert predicted["labels"], "some label reaches its threshold"
    assert (tmp_path / "0-relevance.png").is_file()


def test_resuming_and_finetuning(label_run: Path, value_run: Path, table: Path, tmp_path: Path) -> None:
    options = ["--task=multilabel", "--data.label_separator=;", *SMALL]
    run = tmp_path / "run"
    assert train(f"--data=csv:{table}", "--output", run, "--epochs=1", *options) == 0
    assert train("--resume", run, "--epochs=2") == 0
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == [1, 2]
    tuned = tmp_path / "tuned"
    tune = [
        "finetune",
        f"--from={value_run}",
        f"--data=csv:{table}",
        f"--output={tuned}",
        "--accelerator=cpu",
    ]
    tune += ["--task=multilabel", "--data.label_separator=;", "--epochs=1", "--method=head", "--workers=0"]
    tune += ["--accelerator=cpu"]
    assert main(tune) == 0
    assert summary_of(tuned)["task"] == "multilabel"
    weights, before = (load_classifier(folder).model.state_dict() for folder in (tuned, value_run))
    kept = [name for name in before if not name.startswith("head")]
    assert all(torch.equal(weights[name], before[name]) for name in kept)


@pytest.mark.parametrize("name", ["label_run", "value_run"])
def test_finetuning_and_evaluating_follow_a_run(
    name: str, request: pytest.FixtureRequest, table: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Task, columns and separator are the run's, for other data that do not give their own."""
    run, other = request.getfixturevalue(name), tmp_path / "other.csv"
    shutil.copy(table, other)
    options = [f"--from={run}", f"--data=csv:{other}?root={table.parent}", "--accelerator=cpu"]
    options += ["--epochs=1", "--method=head", "--workers=0", f"--output={tmp_path / 'tuned'}"]
    assert main(["finetune", *options]) == 0
    summary, first = summary_of(tmp_path / "tuned"), summary_of(run)
    assert summary["task"] == first["task"]
    key = "labels" if name == "label_run" else "values"
    assert list(summary["test"][key]) == list(first["test"][key])
    capsys.readouterr()
    found = answer(capsys, "evaluate", run, f"--data=csv:{other}?root={table.parent}&split=split")
    assert found[key] == first["test"][key]


@pytest.mark.parametrize(
    ("name", "options"), [("label_run", []), ("label_run", ["--hard=false"]), ("value_run", [])]
)
def test_a_student_learns_from_labels_or_values_and_a_teacher(
    name: str, options: list[str], request: pytest.FixtureRequest, table: Path, tmp_path: Path
) -> None:
    """Task and columns are the teacher's."""
    teacher, student = request.getfixturevalue(name), tmp_path / "student"
    command = ["distill", f"--teacher={teacher}", f"--data=csv:{table}", f"--output={student}", *options]
    command += [*SMALL, "--student=vit_tiny_patch16_224", "--model.patch-size=4"]
    command += ["--epochs=2", "--accelerator=cpu"]
    assert main(command) == 0
    problem, model = (load_classifier(teacher).problem, load_classifier(student).model)
    assert type(model) is DistillableViT
    assert summary_of(student)["task"] == problem.task
    assert load_classifier(student).problem.names == problem.names
    images = torch.rand(2, model.channels, 20, 20)
    with torch.no_grad():
        assert model.eval()(images).shape == (2, len(problem.names))


def test_finetuning_for_another_task_follows_no_columns(
    value_run: Path, table: Path, capsys: Capture
) -> None:
    options = [f"--from={value_run}", f"--data=csv:{table}", "--print_config"]
    with pytest.raises(SystemExit):
        main(["finetune", *options])
    assert "label_column: ink,digit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["finetune", *options, "--task=multilabel"])
    assert "label_column: null" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task=multilabel", "--label_smoothing=0.1"], "label_smoothing: for task classify only"),
        (["--task=regression", "--sampler=balanced"], "sampler: for task classify only, got task regression"),
        (["--task=regression", "--class_weights=balanced"], "class_weights are of the losses"),
        (["--task=multilabel", "--loss=focal"], "must be bce or asymmetric, got focal"),
        (["--task=multilabel", "--select=accuracy"], "select of task multilabel must be map or f1 or loss"),
        (["--task=regression", "--distillation.teacher=x", "--distillation.hard=false"], "must be true for"),
        (["--loss.gamma=1"], "loss.gamma is of the loss focal or asymmetric"),
    ],
)
def test_options_that_are_not_the_tasks(
    options: list[str], message: str, table: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert train(f"--data=csv:{table}", "--output", tmp_path / "run", *options, *SMALL) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tasks_need_a_table(tmp_path: Path, capsys: Capture) -> None:
    assert train("--task=multilabel", "--output", tmp_path / "run", *TINY) == 3
    assert "task multilabel learns from a table, csv:FILE, got digits" in capsys.readouterr().err


def test_an_exported_file_says_what_its_values_mean(
    value_run: Path, table: Path, tmp_path: Path, capsys: Capture
) -> None:
    file, image = tmp_path / "m.pt2", next(table.parent.rglob("*.png"))
    options = ["--format=pt2", "--outputs=logits", "--images=4", f"--output={file}", "--json"]
    assert main(["export", str(value_run), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    predictor = Predictor(value_run)
    with torch.no_grad():
        logits = load_exported(file)(predictor.prepare(Image.open(image))[None])[0].tolist()
    mean, std = (report["problem"][key] for key in ("mean", "std"))
    values = [logit * s + m for logit, s, m in zip(logits, std, mean, strict=True)]
    expected = predictor(image)["values"]
    assert report["problem"]["task"] == "regression"
    assert dict(zip(report["classes"], values, strict=True)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["label_run", "value_run"])
def test_an_export_is_verified_on_another_table(
    name: str, table: Path, tmp_path: Path, capsys: Capture, request: pytest.FixtureRequest
) -> None:
    """In the columns of the run; on all of its images, which it does not split."""
    lines = table.read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines[:31]))
    source = f"csv:{tmp_path / 'other.csv'}?root={table.parent}"
    options = ["--format=pt2", "--outputs=logits", f"--output={tmp_path / 'm.pt2'}", f"--verify={source}"]
    run = request.getfixturevalue(name)
    capsys.readouterr()
    assert main(["export", str(run), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["verification"]
    assert (found["images"], found["labelled"]) == (30, 30 if name == "label_run" else 0)
    assert found["accuracy"] == found["model_accuracy"]
    assert (found["accuracy"] is None) == (name == "value_run")


def test_what_other_commands_refuse(label_run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(label_run), "--probe=knn"]) == 2
    assert "a probe tells classes from each other" in capsys.readouterr().err
    assert main(["export", str(label_run), "--format=torchscript", f"--output={tmp_path / 'm.ts'}"]) == 2
    assert "task multilabel is exported with --outputs logits" in capsys.readouterr().err
    distill = [
        "distill",
        f"--teacher={label_run}",
        f"--output={tmp_path / 'run'}",
        "--accelerator=cpu",
        *TINY,
    ]
    assert main(distill) == 4
    assert f"the task of the teacher {label_run} is multilabel, the data's is" in capsys.readouterr().err
