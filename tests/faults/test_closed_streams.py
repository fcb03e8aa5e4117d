"""A run trains to its end, whatever becomes of its terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, command, environment


@pytest.mark.parametrize(
    "shell",
    [
        'set -o pipefail; "$@" | head -1',
        '"$@" >&- 2>&- <&-',
        'LC_ALL=C PYTHONIOENCODING=ascii PYTHONUTF8=0 "$@"',
        'setsid "$@" </dev/null >/dev/null 2>&1',
    ],
    ids=["head", "closed", "ascii", "no-terminal"],
)
def test_training_with_closed_streams(shell: str, tmp_path: Path) -> None:
    arguments = command("train", "--accelerator=cpu", "--output=run", "--epochs=2", *TINY)
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"] == 2
    if "|" in shell:
        assert b"nobody reads standard output any more; the command goes on" in done.stderr


def test_names_that_a_stream_cannot_encode() -> None:
    """Escapes stand for them."""
    program = "from vit_pytorch.cli.streams import keep_streams; keep_streams(); "
    program += "print('caf\\udce9 \\u00e9 \\u2026')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.stdout == rb"caf\udce9 \xe9 \u2026" + os.linesep.encode(), done.stderr
