"""A run trains to its end, whatever becomes of its terminal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, command, environment
from tests.forked import for_scripts, in_script
from vit_pytorch.cli import Status
from vit_pytorch.cli.tables import table
from vit_pytorch.training.runs import find_checkpoint
from vit_pytorch.training.signals import StopSignals


@pytest.mark.parametrize(
    "shell",
    [
        'set -o pipefail; "$@" | head -1',  # which a copy's streams are, too; the others take real processes
        '"$@" >&- 2>&- <&-',
        'LC_ALL=C PYTHONIOENCODING=ascii PYTHONUTF8=0 "$@"',
        'setsid "$@" </dev/null >/dev/null 2>&1',
    ],
    ids=["head", "closed", "ascii", "no-terminal"],
)
def test_training_with_closed_streams(shell: str, tmp_path: Path) -> None:
    """A reader such as `head` that leaves, closed streams, ASCII, no terminal.

    Here: the run trains to its end
    Others: with `head -1` Lightning and timm's `train.py` train to their end; `Trainer` ends in
        `BrokenPipeError`, status 1; the other cases were not tried
    """
    arguments = command("train", "--accelerator=cpu", "--output=run", "--epochs=2", *TINY)
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *(in_script(arguments) if "head" in shell else arguments)],
        cwd=tmp_path,
        env={**environment(), **for_scripts()},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2
    if "|" in shell:
        assert b"nobody reads standard output any more; the command goes on" in done.stderr


def test_names_that_a_stream_cannot_encode() -> None:
    """Names that standard output cannot encode.

    Here: escapes stand for them
    Others: no counterpart
    """
    program = "from vit_pytorch.cli.streams import keep_streams; keep_streams(); "
    program += "print('caf\\udce9 \\u00e9 \\u2026')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.stdout == rb"caf\udce9 \xe9 \u2026" + os.linesep.encode(), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(("shell", "status"), [('"$@" > /dev/full', 6), ('"$@" | head -1', 0)])
def test_results_that_cannot_be_printed(
    shell: str, status: int, run: Path, image_folder: Path, tmp_path: Path
) -> None:
    """The disk is full to which the standard output of `vit predict` goes.

    Here: status 6; with a reader such as `head` that leaves, all is well
    Others: no counterpart
    """
    arguments = in_script(command("predict", run, image_folder))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "bash", *arguments],
        cwd=tmp_path,
        env={**environment(), **for_scripts()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status
    assert ("standard output is not complete: No space left on device" in done.stderr) == (status == 6)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs terminals of Unix")
def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """The terminal of a run is closed, as by a connection that is lost.

    Here: a checkpoint, and status 129
    Others: Lightning and `Trainer` end at once by SIGHUP, with the checkpoint of the last epoch
    """
    import pty

    arguments = command("train", "--accelerator=cpu", "--output=run", "--epochs=10000", *TINY)
    child, terminal = pty.fork()
    if not child:
        os.chdir(tmp_path)
        os.execve(arguments[0], arguments, environment())
    seen = b""
    while b"train loss" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == Status.SIGHUP
    assert find_checkpoint(tmp_path / "run").path.is_dir()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_signals_that_are_ignored() -> None:
    """A signal that the process is told to ignore, as SIGHUP by `nohup`.

    Here: ignored
    Others: Lightning, of SIGINT in a shell's background job: trains to its end
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


def test_names_that_act_on_a_terminal() -> None:
    """Names of images with characters that colour a terminal, turn the direction of text or move the cursor.

    Here: escapes stand for them in tables
    Others: no counterpart
    """
    text = table(["image"], [["\x1b[31mred\u202egpj.png"], ["a\rb\nc"]])
    assert text.splitlines()[1:] == [r"\x1b[31mred\u202egpj.png", "a b c"]
