"""What the Python reference shows of classes and modules, beyond what autodoc takes from them."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from sphinx.util.inspect import stringify_signature

if TYPE_CHECKING:
    from sphinx.application import Sphinx

INITIAL = re.compile(r"^([A-Z])\. ")


def constructor_signature(
    app: Sphinx, what: str, name: str, item: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Return the arguments of a class: of those that have a `__new__` of their own, autodoc shows its."""
    if what != "class" or not (signature or "").startswith("(*args"):
        return None
    return stringify_signature(inspect.signature(item), show_return_annotation=False), None


def paragraphs(app: Sphinx, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Make each fact at the end of a paper's docstring a paragraph, and no list of an author's initial."""
    if what != "module":
        return
    for index in reversed(range(len(lines))):
        lines[index] = INITIAL.sub(r"\1\\. ", lines[index])
        if lines[index].startswith("Differs from the paper:"):
            lines.insert(index, "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.connect("autodoc-process-signature", constructor_signature)
    app.connect("autodoc-process-docstring", paragraphs)
    return {"parallel_read_safe": True}
