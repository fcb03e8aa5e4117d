"""A directive that draws an architecture from a few lines of text.

    ```{architecture}
    model: image → patches (16 × 16) → class token → 12 × block → norm → head
    block: [norm → attention] → [norm → feed-forward]
    ```

Each line is a row of the figure: its name, then boxes joined by arrows; a line that begins with an arrow or a
bar goes on with the row before it. Round brackets are a note in the box. What stands in square brackets is
added to what entered it, and `|` between branches adds each. Curly brackets are branches side by side, which
end in what follows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ARROW = "→"
TOKEN = re.compile(r"\s*([→|\[\]{}]|[^→|\[\]{}]+)")
CLOSING = {"[": "]", "{": "}"}
# the kinds of boxes, which have colours, by their words
KINDS = {
    "attention": re.compile("attention"),
    "convolution": re.compile("convolution|^pool|^merge|^unfold|bottleneck"),
    "feedforward": re.compile("feed-forward"),
    "norm": re.compile(r"\bnorm$"),
}
# extents in pixels: boxes, gaps, and the width from which on a row goes on in the next line
HEIGHT, NOTED, PADDING, GAP, SPREAD, RADIUS, LABEL, WIDEST = 28, 42, 9, 20, 12, 7, 16, 700


@dataclass(frozen=True)
class Box:
    """A step: its words, and a note below them."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Branches side by side; `residual` adds them to what entered them."""

    branches: tuple[Row, ...]
    residual: bool


Row = tuple["Box | Group", ...]


@dataclass(frozen=True)
class Drawing:
    """A part of a figure around the line that runs through its middle.

    Args:
        width: its extent from left to right.
        above: its extent above the line.
        below: its extent below the line.
        shapes: SVG elements whose origin is where the line enters.
    """

    width: float
    above: float
    below: float
    shapes: str


def read_figure(lines: Sequence[str]) -> dict[str, Row]:
    """Read the rows of a figure by their names.

    Raises:
        ValueError: if a line has no name, or brackets do not match.
    """
    texts: list[str] = []
    for line in filter(str.strip, lines):
        if line.lstrip().startswith((ARROW, "|")) and texts:
            texts[-1] += f" {line.strip()}"
        else:
            texts.append(line)
    rows = {}
    for text in texts:
        name, colon, course = text.partition(":")
        if not colon:
            raise ValueError(f"a row begins with its name and a colon, got {text!r}")
        tokens = [token.strip() for token in TOKEN.findall(course) if token.strip()]
        rows[name.strip()] = _read_row(tokens)
        if tokens:
            raise ValueError(f"brackets do not match in {text!r}")
    return rows


def _read_row(tokens: list[str]) -> Row:
    """Take a row off the front of a list of tokens."""
    row: list[Box | Group] = []
    while tokens and tokens[0] not in ("|", "]", "}"):
        token = tokens.pop(0)
        if token == ARROW:
            continue
        if token not in CLOSING:
            text, _, note = token.partition("(")
            row.append(Box(text.strip(), note.rstrip(") ")))
            continue
        branches = [_read_row(tokens)]
        while tokens[:1] == ["|"]:
            tokens.pop(0)
            branches.append(_read_row(tokens))
        if tokens[:1] != [CLOSING[token]]:
            raise ValueError(f"{token} is not closed")
        tokens.pop(0)
        row.append(Group(tuple(branches), residual=token == "["))
    return tuple(row)


def describe(row: Row) -> str:
    """Say a row in words."""
    return ", then ".join(_describe(part) for part in row)


def _describe(part: Box | Group) -> str:
    if isinstance(part, Box):
        return f"{part.text} ({part.note})" if part.note else part.text
    branches = [describe(branch) or "the input as it is" for branch in part.branches]
    if not part.residual:
        return "side by side: " + "; and ".join(branches)
    return " and ".join(f"({branch})" for branch in branches) + " added to the input"


def width_of(text: str, size: float) -> float:
    """Return about how wide a text is in a sans-serif font, rather too much than too little."""
    narrow, wide = sum(text.count(letter) for letter in "ijlft.,:;'()| "), sum(map(text.count, "mwMW×@"))
    return size * (0.58 * (len(text) - narrow - wide) + 0.34 * narrow + 0.86 * wide)


def kind_of(text: str) -> str:
    """Return the class of a box by its words."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(text)), "other")


def draw(part: Box | Group) -> Drawing:
    """Draw one step."""
    return _draw_box(part) if isinstance(part, Box) else _draw_group(part)


def _draw_box(box: Box) -> Drawing:
    width = 2 * PADDING + max(width_of(box.text, 13), width_of(box.note, 11))
    half = (NOTED if box.note else HEIGHT) / 2
    lines = [f'<rect x="0" y="{-half:g}" width="{width:.1f}" height="{2 * half:g}" rx="5"/>']
    lines.append(f'<text x="{width / 2:.1f}" y="{-3 if box.note else 4.5}">{escape(box.text)}</text>')
    if box.note:
        lines.append(f'<text class="note" x="{width / 2:.1f}" y="12">{escape(box.note)}</text>')
    return Drawing(width, half, half, f'<g class="{kind_of(box.text)}">{"".join(lines)}</g>')


def _draw_group(group: Group) -> Drawing:
    """Draw branches below each other, with lines from where they part to where they meet."""
    drawings = [_draw_line(branch) for branch in group.branches]
    inner = max(drawing.width for drawing in drawings)
    heights = [drawing.above + drawing.below for drawing in drawings]
    total = sum(heights) + SPREAD * (len(drawings) - 1)
    left, right = GAP, GAP + inner
    end = right + GAP - RADIUS
    top, shapes = -total / 2, []
    for drawing, height in zip(drawings, heights, strict=True):
        middle = top + drawing.above
        start = left + (inner - drawing.width) / 2
        if drawing.shapes:
            shapes += [
                f'<path d="M4 0V{middle:.1f}H{start - 3:.1f}" marker-end="url(#arrow)"/>',
                f'<g transform="translate({start:.1f} {middle:.1f})">{drawing.shapes}</g>',
                f'<path d="M{start + drawing.width:.1f} {middle:.1f}H{end:.1f}V0"/>',
            ]
        else:
            shapes.append(f'<path d="M4 0V{middle:.1f}H{end:.1f}V0"/>')
        top += height + SPREAD
    above = below = total / 2
    if group.residual:
        above += SPREAD
        shapes.insert(0, f'<path class="residual" d="M4 0V{-above:.1f}H{end:.1f}V{-RADIUS}"/>')
        shapes.append(
            f'<circle cx="{end:.1f}" cy="0" r="{RADIUS}"/>'
            f'<path d="M{end - 4:.1f} 0H{end + 4:.1f}M{end:.1f} -4V4"/>'
        )
    width = end + (RADIUS if group.residual else 0)
    return Drawing(width, above, below, '<path d="M0 0H4"/>' + "".join(shapes))


def _draw_line(row: Row) -> Drawing:
    """Draw steps next to each other."""
    x, above, below, shapes = 0.0, 0.0, 0.0, []
    for index, part in enumerate(row):
        drawing = draw(part)
        if index:
            shapes.append(_arrow(x, into=part))
            x += GAP
        shapes.append(f'<g transform="translate({x:.1f} 0)">{drawing.shapes}</g>')
        x += drawing.width
        above, below = max(above, drawing.above), max(below, drawing.below)
    return Drawing(x, above, below, "".join(shapes))


def _arrow(x: float, *, into: Box | Group) -> str:
    """Draw the way to the next step; a group has arrows of its own."""
    if isinstance(into, Group):
        return f'<path d="M{x:.1f} 0H{x + GAP:.1f}"/>'
    return f'<path d="M{x:.1f} 0H{x + GAP - 3:.1f}" marker-end="url(#arrow)"/>'


def lines_of(row: Row) -> list[Row]:
    """Break a row into lines that are not too wide."""
    lines: list[list[Box | Group]] = [[]]
    width = 0.0
    for part in row:
        extent = draw(part).width + GAP
        if lines[-1] and width + extent > WIDEST:
            lines.append([])
            width = 0.0
        lines[-1].append(part)
        width += extent
    return [tuple(line) for line in lines]


def svg_of(rows: dict[str, Row], title: str) -> str:
    """Draw a figure: a row below the other, each under its name."""
    y, width, shapes = 0.0, 0.0, []
    for name, row in rows.items():
        y += LABEL
        shapes.append(f'<text class="label" x="1" y="{y - 3:g}">{escape(name)}</text>')
        for index, line in enumerate(lines_of(row)):
            drawing = _draw_line(line)
            y += drawing.above + 4
            x = GAP if index else 1
            if index:
                shapes.append(f'<g transform="translate(0 {y:.1f})">{_arrow(0, into=line[0])}</g>')
            shapes.append(f'<g transform="translate({x} {y:.1f})">{drawing.shapes}</g>')
            y += drawing.below + 4
            width = max(width, x + drawing.width + 2)
        y += SPREAD
    said = ". ".join(f"{name}: {describe(row)}" for name, row in rows.items())
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8Z"/></marker></defs>'
    )
    size = f'width="{width:.0f}" height="{y:.0f}" viewBox="0 0 {width:.0f} {y:.0f}"'
    words = escape(f"{title}. {said}.")
    return f'<svg class="architecture" role="img" aria-label="{words}" {size}>{arrow}{"".join(shapes)}</svg>'


class Architecture(SphinxDirective):
    """`{architecture}` draws its content."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write the figure, which scrolls where it does not fit."""
        try:
            svg = svg_of(read_figure(list(self.content)), "Architecture")
        except ValueError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", f'<div class="figure-scroll">{svg}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("architecture", Architecture)
    return {"parallel_read_safe": True}
