"""Programs that start as copies are what was asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.forked import environment

SHOWS = """
import os, sys
print(os.getcwd(), os.environ["WORD"], sys.argv[1:], os.getsid(0) == os.getpid(), __name__)
print("wrong", file=sys.stderr)
sys.exit(3)
"""


def test_a_copy_is_the_program_that_was_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHOWS, "a b"]
    variables = {**environment(), "WORD": "caf\u00e9"}
    with forked.Popen(command, env=variables, cwd=tmp_path, start_new_session=True) as process:
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (3, "wrong\n")
    assert output == f"{tmp_path} caf\u00e9 ['a b'] True __main__\n"


def test_a_copy_ends_by_a_signal() -> None:
    with forked.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=environment()) as process:
        assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM


def test_what_is_read_at_the_start_needs_a_real_process() -> None:
    with pytest.raises(ValueError, match="PYTHONPATH must be as in this process: start a real process"):
        forked.run([sys.executable, "-c", ""], env={**environment(), "PYTHONPATH": "elsewhere"})


def test_a_library_that_amends_the_search_path_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenCV does when it is imported, for processes that begin later."""
    assert forked.run([sys.executable, "-c", ""], env=environment()).returncode == 0
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/elsewhere:{os.environ.get('LD_LIBRARY_PATH', '')}")
    assert forked.run([sys.executable, "-c", ""], env=environment()).returncode == 0


def test_programs_of_scripts_are_copies(tmp_path: Path) -> None:
    """Their streams are the script's, also pipes; they get its signals, and it their status."""
    program = "import sys, torch; print(sys.stdin.read(), torch.nn.__name__)"
    waits = "import time; print('here', flush=True); time.sleep(100)"
    script = (
        f'echo word | "{sys.executable}" -m tests.forked -u -c "{program}" | cat\n'
        f'"{sys.executable}" -m tests.forked -c "raise SystemExit(7)"; echo $?\n'
        f'exec "{sys.executable}" -m tests.forked -c "{waits}"\n'
    )
    variables = {**environment(), **forked.for_scripts()}
    with subprocess.Popen(
        ["bash", "-c", script], env=variables, cwd=tmp_path, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines == [b"word\n", b" torch.nn\n", b"7\n", b"here\n"]
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM


def test_a_script_cannot_tell_copies_what_is_read_at_the_start() -> None:
    variables = {**environment(), **forked.for_scripts(), "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-m", "tests.forked", "-c", ""]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PYTHONHASHSEED must be as in this process: start a real process" in done.stderr
