"""`docs/reliability.md` lists every fault that is tested, and every exit status."""

import ast
import re
from pathlib import Path

from vit_pytorch.cli import Status

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "reliability.md"


def named_tests() -> set[str]:
    """Tests as `module::test`, without this module's."""
    return {
        f"{path.stem}::{node.name}"
        for path in FOLDER.glob("test_*.py")
        if path != Path(__file__)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_has_a_row() -> None:
    rows = re.findall(r"^\| .* \| `(test_\w+::test_\w+)` \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == named_tests()


def test_every_exit_status_has_a_row() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(str(int(status)), status.name) for status in Status]
