"""Files that a killed process, or a copy, left half written give a sentence; a run writes all or nothing."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.cli.conftest import TINY, environment, train
from tests.faults.conftest import contents
from vit_pytorch.storage import recover, replacing, write_file
from vit_pytorch.training import run as run_module


@pytest.mark.parametrize("part", [0.0, 0.5])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "metrics.jsonl"])
def test_resuming_with_a_half_written_file(
    name: str, part: float, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty or cut `config.yaml`, `metrics.csv`, `metrics.jsonl`.

    Here: resuming names the file and changes nothing
    Others: `Trainer`, of `trainer_state.json`: a `JSONDecodeError` that names no file; Lightning and timm's
        `train.py`, of a cut checkpoint: `OSError: Invalid argument`
    """
    whole = (run / name).read_bytes()
    rest = whole[: int(part * len(whole))]
    # a last line of `metrics.jsonl` that is cut off is left out, as after SIGKILL
    (run / name).write_bytes(rest if name != "metrics.jsonl" else whole[10:])
    before = contents(run)
    assert train("--resume", run, "--epochs=3") == 5
    said = capsys.readouterr().err
    assert f"{run / name} is damaged" in said
    assert "Traceback" not in said
    assert contents(run) == before
    (run / name).write_bytes(whole)
    assert train("--resume", run, "--epochs=3") == 0


def test_resuming_with_a_configuration_cut_between_lines(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`config.yaml` cut between two lines, which is valid YAML.

    Here: refused: it ends before its last setting
    """
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text[: text.index("label_smoothing")])
    assert train("--resume", run, "--epochs=3") == 5
    assert "config.yaml is damaged: it ends before its last setting" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", '{"epochs": ', "[]", "{}"])
def test_a_half_written_summary_is_written_again(content: str, run: Path) -> None:
    """Empty or cut `summary.json`.

    Here: a warning, and resuming writes the report again
    Others: no counterpart: none writes a report
    """
    whole = (run / "summary.json").read_bytes()
    (run / "summary.json").write_text(content)
    with pytest.warns(UserWarning, match=r"summary\.json is damaged .* and will be written again"):
        assert train("--resume", run) == 0
    assert (run / "summary.json").read_bytes() == whole


@pytest.mark.parametrize("name", ["summary.md", "curves.png", "wrong.png", "model/config.json"])
def test_a_missing_part_of_the_report_is_written_again(name: str, run: Path) -> None:
    """A picture, the page or the model is missing.

    Here: resuming writes the report again
    Others: no counterpart
    """
    (run / name).unlink()
    assert train("--resume", run) == 0
    assert (run / name).stat().st_size


def test_a_refused_resume_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A resume that is refused.

    Here: no file has changed, and a right one goes on
    Others: a checkpoint of a model of another width is refused by both with a `RuntimeError`;
        `Trainer` changes nothing, Lightning leaves another folder `version_2` with an event file
    """
    before = contents(run)
    for option in ("--seed=5", "--optimizer.name=sgd", "--data.source=nowhere", "--accelerator=tpu"):
        assert train("--resume", run, "--epochs=3", option) != 0
        assert "Traceback" not in capsys.readouterr().err
        assert contents(run) == before
    assert train("--resume", run, "--epochs=3") == 0


def test_a_run_killed_before_its_first_checkpoint_is_started_again(finished: Path, tmp_path: Path) -> None:
    """A run killed before its first checkpoint.

    Here: not resumed; the same command starts it again in its folder
    Others: `Trainer` (`resume_from_checkpoint=True`): a `ValueError`, there is no checkpoint
    """
    run = tmp_path / "run"
    run.mkdir()
    for name in (".run", "config.yaml", "images.csv.gz", "metrics.jsonl"):
        (run / name).write_bytes((finished / name).read_bytes())
    assert train("--resume", run) == 5
    assert train("--output", run, "--epochs=1", *TINY) == 0
    assert (run / "summary.json").exists()


def test_a_refused_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start that is refused after the folder was made.

    Here: the folder is gone
    Others: with data whose first image cannot be read Lightning leaves `version_0` with its
        `hparams.yaml`, `Trainer` an empty folder
    """

    def refuse(*_: Any) -> None:
        raise ValueError("these two do not go together")

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fit", refuse)
        for output in (["--output=run"], []):
            assert train(*output, "--epochs=1", *TINY) != 0
            assert "do not go together" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    # neither does what is refused before that
    (tmp_path / "runs").rmdir()
    for output in (["--output=new/run"], []):
        assert train(*output, "--epochs=1", *TINY, "--model.image_size=17") != 0
        assert "multiple of patch size" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == []
    assert train("--output=run", "--epochs=1", *TINY) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from vit_pytorch.storage import replacing

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

stage, file = sys.argv[1:]
if stage == "fsync":
    os.fsync = die
if stage == "replace":
    Path.replace = die
with replacing(file) as temporary:
    temporary.write_text("aft")
    if stage == "write":
        die()
"""


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
def test_sigkill_while_a_file_is_replaced(stage: str, tmp_path: Path) -> None:
    """SIGKILL while a file is written.

    Here: it holds what it held before
    Others: `torch.save`, by which the public vit-pytorch's weights are kept: a file of 0 bytes,
        `EOFError`; Lightning: a file that loads
    """
    file = tmp_path / "summary.json"
    write_file(file, "before")
    done = forked.run([sys.executable, "-c", KILLED, stage, str(file)], env=environment())
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "before"
    recover(file)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_an_error_while_a_folder_is_replaced(tmp_path: Path) -> None:
    """An error while a model's folder is written.

    Here: the folder is as it was
    Others: transformers' `save_pretrained`, an error while the weights are written: the new
        `config.json` beside the old weights, refused at loading by their shapes
    """
    write_file(tmp_path / "model" / "config.json", "before")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "model") as place:
        write_file(place / "config.json", str(1 / 0))
    assert contents(tmp_path) == {"model/config.json": b"before"}
    with replacing(tmp_path / "model") as place:
        write_file(place / "config.json", "after")
    assert contents(tmp_path) == {"model/config.json": b"after"}
