"""A run whose folder another process trains in is not resumed; the kernel's lock ends with that process."""

import os
import signal
import socket
import time
import warnings
from pathlib import Path

import pytest

from tests import forked
from tests.cli.conftest import TINY, command, environment, train
from vit_pytorch.training import runs
from vit_pytorch.training.history import read_rows
from vit_pytorch.training.runs import hold_run


def test_resuming_a_run_that_is_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--resume` of a run that is still training, named or as the latest.

    Here: refused, naming host and process; the lock ends with the process, also after SIGKILL
    Others: Lightning and transformers' `Trainer` (`ckpt_path`, `resume_from_checkpoint`): both processes
        train on in one folder, with status 0
    """
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "long"
    arguments = ("train", "--accelerator=cpu", "--output", run, "--epochs=100000", *TINY)
    with forked.Popen(command(*arguments), env=environment()) as process:
        deadline = time.monotonic() + 200
        while not (run / "checkpoints" / "last").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for asked in (["--resume", str(run)], ["--resume"], ["--resume", "--output", str(run)]):
            assert train(*asked) == 5
            said = capsys.readouterr().err
            assert f"{run} is in use by process {process.pid} on {socket.gethostname()}" in said
        assert train("--output", run, *TINY) == 5
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    done = int(os.readlink(run / "checkpoints" / "last").split("-")[1])
    assert train("--resume", run, f"--epochs={done + 1}") == 0
    assert [row["epoch"] for row in read_rows(run / "metrics.csv")] == list(range(1, done + 2))


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system or file system without locks.

    Here: a warning that a second process would go unnoticed
    Others: no counterpart: none of them locks a run
    """
    monkeypatch.setattr(runs, "fcntl", None)
    message = "cannot be locked .*a second process in it would go unnoticed"
    with pytest.warns(UserWarning, match=message), hold_run(tmp_path):
        pass


def test_a_lock_is_released(tmp_path: Path) -> None:
    """The lock of a run that has ended.

    Here: released; `.run` says who held it
    Others: no counterpart
    """
    for _ in range(2):
        with warnings.catch_warnings(), hold_run(tmp_path):
            assert (tmp_path / ".run").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
