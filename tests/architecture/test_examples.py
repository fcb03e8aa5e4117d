"""Every Python example of the documentation runs, page by page, each block after those before it.

A block that needs the network or hours opens with ```python no-run. Tutorials, which have commands between
their examples, run in `test_tutorials.py`.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The tutorials run in test_tutorials.py, the programs of deploy.md in tests/export/test_export.py.
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PAGES = sorted(page for page in PAGES if page.parent.name != "tutorials" and page.name != "deploy.md")
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.M | re.S)


def blocks(text: str) -> list[tuple[int, str]]:
    """Give the examples of a page with the line that each begins at."""
    found = []
    for match in BLOCK.finditer(text):
        code = re.sub(f"^{match[1]}", "", match[2], flags=re.M)
        found.append((text.count("\n", 0, match.start(2)) + 1, code))
    return found


def test_blocks_are_found():
    item = "- item\n  ```python\n  if a:\n    b = a\n  ```\n"
    text = f"# Title\n```python\na = 1\n```\n{item}```python no-run\n?\n```\n"
    assert blocks(text) == [(3, "a = 1\n"), (7, "if a:\n  b = a\n")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for line, code in blocks(page.read_text()):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
