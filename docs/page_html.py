"""What every page's HTML gets: figures that stay on one line, and what keyboards and screen readers need."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# numbers that typography would break: 2.2e-6, 99.4 %, 12 ms
FIGURE = re.compile(r"(?<![\w.])\d[\d.,]*(?:e-?\d+|[  ](?:%|ms|s|[KMGT]i?B)(?!\w))")
# places whose text is shown as it is, or is none
VERBATIM = (nodes.literal, nodes.literal_block, nodes.raw, nodes.comment, nodes.title)


class UnbrokenFigures(SphinxPostTransform):
    """Put each figure into a span that is not broken at the end of a line."""

    default_priority = 900
    formats = ("html",)

    def run(self, **options: Any) -> None:
        """Replace the texts of a page that have figures."""
        for text in list(self.document.findall(nodes.Text)):
            if any(isinstance(place, VERBATIM) for place in _places(text)) or not FIGURE.search(text):
                continue
            made: list[nodes.Node] = []
            end = 0
            for found in FIGURE.finditer(text):
                made += [
                    nodes.Text(text[end : found.start()]),
                    nodes.inline("", found[0], classes=["unbroken"]),
                ]
                end = found.end()
            made.append(nodes.Text(text[end:]))
            text.parent.replace(text, [node for node in made if node.astext()])


def _places(node: nodes.Node) -> list[nodes.Node]:
    """Return the elements around a node, the innermost first."""
    places = []
    while node.parent is not None:
        node = node.parent
        places.append(node)
    return places


def name_levels(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.Node | None
) -> None:
    """Give the headings of the navigation, which the theme marks by role alone, their level."""
    tree_of_pages = context.get("furo_navigation_tree")
    if tree_of_pages:
        context["furo_navigation_tree"] = tree_of_pages.replace(
            'role="heading"', 'role="heading" aria-level="2"'
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both; the theme's own navigation comes first."""
    app.add_post_transform(UnbrokenFigures)
    app.connect("html-page-context", name_levels, priority=900)
    return {"parallel_read_safe": True}
