"""A directive for the table of an architecture's named models, made from the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from vit_pytorch.registry import entries

if TYPE_CHECKING:
    from sphinx.application import Sphinx

COLUMNS = {
    "width": ("dim", "embedding_dim"),
    "depth": ("depth", "num_layers", "spatial_depth"),
    "heads": ("heads", "num_heads"),
    "patch": ("patch_size", "image_patch_size"),
    "frames": ("frames", "num_frames"),
}


class NamedModels(SphinxDirective):
    """`.. named-models:: ViT` lists the models of a class: sizes, exact parameters, published weights."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        found = [entry for entry in entries().values() if entry.architecture.__name__ == self.arguments[0]]
        if not found:
            raise self.error(f"no named model is a {self.arguments[0]}")
        known = {key for entry in found for key in entry.config}
        columns = {title: names for title, names in COLUMNS.items() if known.intersection(names)}
        rows = [["name", "parameters", *columns, "published weights"]]
        for entry in found:
            sizes = [
                str(next(entry.config[key] for key in names if key in entry.config))
                for names in columns.values()
            ]
            rows.append([f"``{entry.name}``", f"{entry.parameters:,}", *sizes, entry.hub_id or ""])
        lines = [".. list-table::", "   :header-rows: 1", ""]
        for row in rows:
            lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
        return self.parse_text_to_nodes(StringList(lines, source="registry"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("named-models", NamedModels)
    return {"parallel_read_safe": True}
