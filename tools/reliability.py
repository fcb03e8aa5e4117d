"""Write the tables of `docs/reliability.md` from the tests in `tests/faults`: `python -m tools.reliability`.

The docstring of a test names its fault, says after "Here:" what comes of it, and after "Others:" what other
projects were seen to do.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "faults"
PAGE = ROOT / "docs" / "reliability.md"
# what is above it is written by hand
MARK = "<!-- The rest is written by `python -m tools.reliability`. -->"
UNTRIED = "not tried"
DAMAGE = (
    "Each reader is given files of which bytes are changed, inserted or gone. By default these are a few,\n"
    "always the same; `make fuzz` takes others, 5000 of each kind."
)
# title, the modules of the tests, and what stands above their table
SECTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "One process at a time": (("test_two_processes_in_one_run",), ""),
    "Files that are half written": (("test_half_written_files", "test_disk_full", "test_hub"), ""),
    "Damaged models and numbers that are not finite": (
        ("test_bit_flips", "test_foreign_weights", "test_not_finite"),
        "",
    ),
    "Data that can be read in two ways": (("test_ambiguous_data",), ""),
    "Options of a run that is resumed": (("test_options_at_resume",), ""),
    "Several machines": (("test_machines",), ""),
    "Terminals": (("test_closed_streams",), ""),
    "Errors that would come late": (("test_late_errors",), ""),
    "Files with random damage": (("test_fuzz_files", "test_fuzz_constructors"), DAMAGE),
    "Errors say what, where, and what to do": (("test_errors_say_what",), ""),
}


class Fault(NamedTuple):
    """A fault that a test injects.

    Args:
        name: what happens to the program
        here: what comes of it
        others: what comes of it in other projects
        test: the test, as `module::function`
    """

    name: str
    here: str
    others: str
    test: str


def read_faults(module: str) -> list[Fault]:
    """Read the faults of a module of tests, in order.

    Raises:
        ValueError: if the docstring of a test is none of a fault
    """
    found = []
    for node in ast.parse((TESTS / f"{module}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            doc = inspect.cleandoc(ast.get_docstring(node) or "")
            parts = re.fullmatch(r"(.*?)\.?\n\nHere: (.*?)(?:\nOthers: (.*))?", doc, re.DOTALL)
            if parts is None:
                raise ValueError(f"{module}::{node.name}: its docstring must name a fault and say `Here: …`")
            name, here, others = (" ".join((part or UNTRIED).split()) for part in parts.groups())
            found.append(Fault(name, here, others, f"{module}::{node.name}"))
    return found


def page_text(current: str) -> str:
    """Return the page: what is above the mark as it is, then the tables."""
    blocks = [current.partition(MARK)[0] + MARK]
    for title, (modules, intro) in SECTIONS.items():
        faults = [fault for module in modules for fault in read_faults(module)]
        rows = [f"| {each.name} | {each.here} | {each.others} | `{each.test}` |" for each in faults]
        table = ["| fault | here | others | test |", "|---|---|---|---|", *rows]
        blocks += [f"## {title}", *([intro] if intro else []), "\n".join(table)]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
