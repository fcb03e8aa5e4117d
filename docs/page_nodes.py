"""Nodes of pages: text with code in backticks, links, and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from docutils import nodes
from sphinx import addnodes

Cell = str | nodes.Node
# code between backticks, and options of a command, whose dashes typography would change
CODE = re.compile(r"`([^`]+)`|(?<![\w-])(--[a-z][\w.-]*\w)")


def inline(text: str) -> list[nodes.Node]:
    """Return a text as nodes; what stands between backticks is code, as are options such as --lr."""
    made: list[nodes.Node] = []
    end = 0
    for found in CODE.finditer(text):
        made.append(nodes.Text(text[end : found.start()]))
        made.append(nodes.literal("", found[1] or found[2]))
        end = found.end()
    made.append(nodes.Text(text[end:]))
    return [node for node in made if node.astext()]


def link(text: str, address: str) -> nodes.reference:
    """Return a link to another site."""
    return nodes.reference("", "", *inline(text), refuri=address)


def page_link(text: str, page: str, *, here: str) -> addnodes.pending_xref:
    """Return a link to a page of the documentation.

    Args:
        text: what is shown.
        page: name of the page from the root of the documentation.
        here: name of the page that the link is on.
    """
    inner = nodes.inline("", "", *inline(text))
    options = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page}", "refdoc": here}
    return addnodes.pending_xref("", inner, refexplicit=True, refwarn=True, **options)


def table(rows: Sequence[Sequence[Cell]], *, classes: Sequence[str] = ()) -> nodes.table:
    """Return rows as a table, the first as its header."""
    header, *body = rows
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in header), cols=len(header))
    group += nodes.thead("", _row(header))
    group += nodes.tbody("", *map(_row, body))
    return nodes.table("", group, classes=[*classes])


def _row(cells: Sequence[Cell]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *_content(cell))) for cell in cells))


def _content(cell: Cell) -> list[nodes.Node]:
    return inline(cell) if isinstance(cell, str) else [cell]
