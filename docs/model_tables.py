"""Directives for tables: an architecture's named models, from the registry; what loads, from measurements."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from vit_pytorch.registry import entries

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MEASURED = Path(__file__).parent / "measured" / "loading.json"
EXPORTED = Path(__file__).parent / "measured" / "exports.json"
COLUMNS = {
    "width": ("dim", "embedding_dim"),
    "depth": ("depth", "num_layers", "spatial_depth"),
    "heads": ("heads", "num_heads"),
    "patch": ("patch_size", "image_patch_size"),
    "frames": ("frames", "num_frames"),
}


class NamedModels(SphinxDirective):
    """`.. named-models:: ViT` lists the models of a class: sizes, exact parameters, published weights.

    A second argument is a pattern that their names match.
    """

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        architecture, pattern = (*self.arguments, "*")[:2]
        found = [
            entry
            for entry in entries().values()
            if entry.architecture.__name__ == architecture and fnmatchcase(entry.name, pattern)
        ]
        if not found:
            raise self.error(f"no named model is a {' '.join(self.arguments)}")
        known = {key for entry in found for key in entry.config}
        columns = {title: names for title, names in COLUMNS.items() if known.intersection(names)}
        rows = [["name", "parameters", *columns, "published weights"]]
        for entry in found:
            sizes = [
                str(next((entry.config[key] for key in names if key in entry.config), ""))
                for names in columns.values()
            ]
            rows.append([f"``{entry.name}``", f"{entry.parameters:,}", *sizes, entry.hub_id or ""])
        return self.parse_text_to_nodes(StringList(list_table(rows), source="registry"))


class LoadedFormats(SphinxDirective):
    """`.. loaded-formats::` lists what loads, and the largest difference that was measured."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_dependency(str(MEASURED))
        rows = [["model", "format", "held against", "direction", "largest difference"]]
        for entry in one_own(json.loads(MEASURED.read_text())):
            rows.append(
                [
                    entry["architecture"],
                    entry["format"],
                    entry["reference"].replace("`", "``"),
                    "both" if entry["written"] else "read",
                    f"{entry['difference']:.1e}" if entry["difference"] else "0",
                ]
            )
        return self.parse_text_to_nodes(StringList(list_table(rows), source=str(MEASURED)))


class ExportedFormats(SphinxDirective):
    """`.. exported-formats::` lists architectures by formats, with the largest difference of outputs."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_dependency(str(EXPORTED))
        found = json.loads(EXPORTED.read_text())
        cells = {(row["model"], row["format"]): row for row in found}
        formats = list(dict.fromkeys(row["format"] for row in found))
        rows = [["architecture", "model", *formats]]
        for model in dict.fromkeys(row["model"] for row in found):
            here = [cells.get((model, name), {}) for name in formats]
            architecture = next(row["architecture"] for row in here if row)
            rows.append([architecture, f"``{model}``", *(exported(row) for row in here)])
        return self.parse_text_to_nodes(StringList(list_table(rows), source=str(EXPORTED)))


def exported(row: dict[str, Any]) -> str:
    """Write a cell: the difference, why a file was refused, or that nothing was measured."""
    if not row:
        return "not measured"
    return row["error"].partition(": ")[2] if "error" in row else f"{row['difference']:.0e}"


def one_own(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one entry of all models' own format, the last."""
    own = [entry for entry in found if entry["format"] == "vit_pytorch"]
    worst = max(own, key=lambda entry: entry["difference"])
    return [entry for entry in found if entry not in own] + [{**worst, "architecture": "all models"}]


def list_table(rows: list[list[str]]) -> list[str]:
    """Write rows as a table, the first as its header."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return lines


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("named-models", NamedModels)
    app.add_directive("loaded-formats", LoadedFormats)
    app.add_directive("exported-formats", ExportedFormats)
    return {"parallel_read_safe": True}
