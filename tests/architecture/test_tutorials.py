"""Every tutorial runs from start to end: its Python, its `vit` commands, and what it shows of their output.

Blocks run in order, in one empty folder. A block of ```text is what the block before it prints: its lines are
there, in order, but for their numbers, which depend on the machine; "…" stands for what is left out. A
block that needs the network opens with `no-run` behind the language.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from vit_pytorch.cli import main

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def without_numbers(text: str) -> list[str]:
    """Return the lines of an output, numbers and widths of columns left out."""
    return [" ".join(NUMBER.sub("0", line).split()) for line in text.splitlines() if line.strip()]


def is_shown(shown: str, printed: str) -> bool:
    """Return whether lines that a page shows were printed, in order."""
    lines = iter(without_numbers(printed))
    return all(
        any(line.startswith(want[:-1].rstrip()) if want[-1] == "…" else line == want for line in lines)
        for want in without_numbers(shown)
        if want != "…"
    )


def run(kind: str, code: str, page: Path, line: int, scope: dict[str, Any]) -> None:
    """Run a block of Python, or the commands of a shell."""
    if kind == "python":
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), scope)
        return
    for command in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(command, comments=True)
        assert program == "vit", f"{page.name}:{line}: only vit is run, got {command}"
        assert main(arguments) == 0, f"{page.name}:{line}: {command}"


def test_what_is_shown_is_what_was_printed() -> None:
    assert is_shown("epoch 3  loss 0.25\n…\ndone", "start\nepoch 1 loss 7\nmore\ndone\n")
    assert is_shown("a.jpg  cat 93% …", "a.jpg   cat 71%  dog 3%\n")
    assert not is_shown("done\nepoch 3", "epoch 3\ndone")
    assert not is_shown("a.jpg  cat 93% …", "a.jpg   dog 71%  cat 3%\n")
    assert not is_shown("epoch three", "epoch 3")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    ran = shown = 0
    for match in BLOCK.finditer(text):
        kind, code = match.groups()
        line = text.count("\n", 0, match.start(2)) + 1
        if kind == "text":
            assert is_shown(code, printed), f"{page.name}:{line}: not what was printed:\n{printed}"
            shown += 1
        else:
            run(kind, code, page, line, scope)
            printed = capsys.readouterr().out
            ran += 1
    assert ran > 1
    assert shown
