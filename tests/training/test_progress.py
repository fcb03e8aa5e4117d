"""What a training says while it runs, what it writes down, and where its time goes."""

import io
import json
from pathlib import Path

import pytest

from tests.training.toy import train
from vit_pytorch.training.history import History, read_lines, read_rows
from vit_pytorch.training.loggers import logger_names, make_loggers
from vit_pytorch.training.progress import Profiler, Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(folder: Path, stream: io.StringIO, interval: float | None = None) -> str:
    folder.mkdir(exist_ok=True)
    history = History(folder)
    train(folder / "checkpoints", history, Progress(history, stream=stream, interval=interval), epochs=2)
    return stream.getvalue()


def test_a_line_lives_on_a_terminal(tmp_path: Path) -> None:
    shown = watched(tmp_path, Terminal(), interval=0.0)
    lines = shown.split("\r")
    assert lines[0] == ""
    first = lines[1].removesuffix("\x1b[K")
    assert first.startswith("epoch 1/2  step 1/12  loss 1.")
    assert all(word in first for word in ("images/s", " left", " GiB"))
    # twelve steps, two epochs whose lines stay, and nothing at the end
    assert len(lines) == 1 + 12 + 2 + 1
    assert [line.count("\n") for line in lines].count(1) == 2
    assert shown.endswith("\r\x1b[K")


def test_lines_stay_where_there_is_no_terminal(tmp_path: Path) -> None:
    often = watched(tmp_path / "often", io.StringIO(), interval=0.0)
    assert "\r" not in often
    assert len(often.splitlines()) == 12 + 2
    seldom = watched(tmp_path / "seldom", io.StringIO())
    assert [line.split("  ")[0] for line in seldom.splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 65, 3725)] == ["0:00", "1:05", "1:02:05"]


def test_lines_of_json_are_the_rows_and_the_steps(tmp_path: Path) -> None:
    train(tmp_path / "checkpoints", History(tmp_path, every=3), epochs=2, every_n_steps=4, keep=9)
    lines, rows = read_lines(tmp_path / "metrics.jsonl"), read_rows(tmp_path / "metrics.csv")
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [{key: value for key, value in line.items() if key != "event"} for line in epochs] == rows
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == [3, 6, 9, 12]
    assert steps[0].keys() == {"event", "epoch", "step", "train/loss", "lr", "images_per_second"}
    # what comes after the checkpoint is replaced, a line that was cut short is forgotten
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')
    checkpoint = tmp_path / "checkpoints" / "epoch-0001-batch-000004"
    train(tmp_path / "checkpoints", History(tmp_path, every=3), epochs=2, resume=checkpoint)
    again = read_lines(tmp_path / "metrics.jsonl")
    changing = ("seconds", "images_per_second")
    assert [{key: value for key, value in line.items() if key not in changing} for line in again] == [
        {key: value for key, value in line.items() if key not in changing} for line in lines
    ]


def test_a_profile_shows_where_time_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "checkpoints", Profiler(tmp_path, 2), epochs=1)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::addmm" in names
    assert {f"ProfilerStep#{step}" for step in (3, 4)} <= names
    assert "aten::addmm" in (tmp_path / "profile" / "table.txt").read_text()
    assert "Self CPU" in capsys.readouterr().out


def test_loggers_by_name(tmp_path: Path) -> None:
    assert logger_names("tensorboard, csv") == ["tensorboard", "csv"]
    assert logger_names("none") == []
    with pytest.raises(ValueError, match="a logger is one of tensorboard, csv, wandb, mlflow, got 'comet'"):
        logger_names("comet")
    loggers = make_loggers("tensorboard,csv", tmp_path)
    train(tmp_path / "checkpoints", History(tmp_path, loggers=loggers, every=3), epochs=1)
    rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "lr", "val/loss", "step"} <= set(rows[0].split(","))
    assert any((tmp_path / "tensorboard").iterdir())


def test_a_logger_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_pytorch.training.loggers.find_spec", lambda name: None)
    for name in ("wandb", "mlflow", "tensorboard"):
        with pytest.raises(ValueError, match=f"logger '{name}' needs one more package: pip install {name}"):
            logger_names(f"csv,{name}")
