"""A directive for a group of papers: a table of what each changes, from the papers' own pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from page_nodes import page_link, table
from sphinx.directives.other import TocTree

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAPERS = Path(__file__).parent / "papers"
YEAR = re.compile(r"\b(20\d\d),")
BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\[([^]]+)\]\([^)]*\)")
ROLE = re.compile(r"\{\w+\}`~?([^`]+)`")
# a full stop or colon after which a new sentence or the end comes
END = re.compile(r"(?<=[.:])\s+(?=[A-Z1-9`])")

# letters of a summary that gets another sentence
SHORT = 80


@dataclass(frozen=True)
class Paper:
    """What the page of a paper says.

    Args:
        title: its heading.
        year: of publication; of the last one where the page is of several, empty where it names none.
        summary: how its text begins, at least one sentence.
    """

    title: str
    year: str
    summary: str


def read_paper(page: Path) -> Paper:
    """Read title, year and summary from the page of a paper."""
    heading, *paragraphs = BLOCK.sub("", page.read_text(encoding="utf-8")).strip().split("\n\n")
    paragraphs = [" ".join(text.split()) for text in paragraphs if text.strip()]
    cited = next((text for text in paragraphs if text.startswith("*")), "")
    years = YEAR.findall(LINK.sub("", cited))
    text = next(text for text in paragraphs if not text.startswith(("*", "|", "#", "-")))
    first, *sentences = END.split(ROLE.sub(r"`\1`", LINK.sub(r"\1", text)))
    while sentences and len(first) < SHORT:
        first += f" {sentences.pop(0)}"
    return Paper(heading.removeprefix("# "), years[-1] if years else "", first.rstrip(".:") + ".")


class PaperGroup(TocTree):
    """`{paper-group}` takes names of pages, one a line; it is a hidden `{toctree}` under a table of them."""

    def run(self) -> list[nodes.Node]:
        """Write the table, and the entries of the navigation."""
        rows: list[list[str | nodes.Node]] = [["paper", "year", "what it is"]]
        for name in self.content:
            page = PAPERS / f"{name}.md"
            if not page.is_file():
                raise self.error(f"no paper has the page {page}")
            self.env.note_dependency(str(page))
            paper = read_paper(page)
            to_page = page_link(paper.title, f"papers/{name}", here=self.env.docname)
            rows.append([to_page, paper.year, paper.summary])
        self.options |= {"hidden": None, "maxdepth": 1}
        return [table(rows, classes=["papers"]), *super().run()]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("paper-group", PaperGroup)
    return {"parallel_read_safe": True}
