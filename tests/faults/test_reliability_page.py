"""`docs/reliability.md` lists every fault that is tested, and every exit status."""

import re
from pathlib import Path

from tools.reliability import PAGE, SECTIONS, page_text
from vit_pytorch.cli import Status


def test_the_page_is_that_of_the_tests() -> None:
    """`python -m tools.reliability` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_text(page)


def test_every_module_has_a_section() -> None:
    modules = {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).stem}
    assert sorted(modules) == sorted(module for listed, _ in SECTIONS.values() for module in listed)


def test_every_exit_status_has_a_row() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(str(int(status)), status.name) for status in Status]
