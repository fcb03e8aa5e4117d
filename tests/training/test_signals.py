import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.training.toy import At, run_toy, train
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.task import Batch


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


class AtValidation(Callback):
    """Does something in the second validation."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_validation_batch_end(self, loop: Loop, batch: Batch, outputs: dict[str, Tensor]) -> None:
        if (batch.epoch, batch.batch_idx) == (1, 0):
            self.action()


@pytest.mark.parametrize(
    ("signum", "status", "where", "checkpoint"),
    [
        (signal.SIGTERM, 143, lambda act: At(1, 2, act), "epoch-0001-batch-000003"),
        (signal.SIGINT, 130, lambda act: At(0, 0, act), "epoch-0000-batch-000001"),
        (signal.SIGTERM, 143, lambda act: At(1, 5, act), "epoch-0002"),
        (signal.SIGINT, 130, AtValidation, "epoch-0002"),
    ],
    ids=["middle", "first", "last", "validation"],
)
def test_a_signal_stops_with_a_checkpoint_and_training_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], signum: int, status: int, where: Any, checkpoint: str
) -> None:
    before = signal.getsignal(signum)
    whole = train(tmp_path / "whole")
    with pytest.raises(SystemExit) as stop:
        train(tmp_path / "stopped", where(send(signum)))
    assert stop.value.code == status
    assert signal.getsignal(signum) == before
    message = f"stopped by {signal.Signals(signum).name}; resume from {tmp_path / 'stopped' / checkpoint}"
    assert capsys.readouterr().err.strip().splitlines()[-1] == message
    assert (tmp_path / "stopped" / "last").resolve().name == checkpoint

    resumed = train(tmp_path / "again", resume=tmp_path / "stopped" / "last")
    assert 0 < len(resumed.train) < len(whole.train)
    assert resumed.train == {when: whole.train[when] for when in list(whole.train)[-len(resumed.train) :]}
    assert resumed.val == {when: whole.val[when] for when in list(whole.val)[-len(resumed.val) :]}


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stop:
        train(tmp_path, At(2, 0, twice))
    assert stop.value.code == 130
    assert (tmp_path / "last").resolve().name == "epoch-0002"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_status_of_a_process(tmp_path: Path, signum: int, status: int) -> None:
    finished = run_toy(tmp_path / "run", "--signal", int(signum))
    assert finished.returncode == status, finished.stderr
    assert "Traceback" not in finished.stderr
    assert f"resume from {tmp_path / 'run' / 'epoch-0001-batch-000003'}" in finished.stderr
