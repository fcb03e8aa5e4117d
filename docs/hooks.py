"""What the site generates: an API page for every public module, and the table of named models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

from vit_pytorch.registry import entries

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PACKAGE = Path(__file__).parent.parent / "vit_pytorch"
MODELS = "<!-- models of "


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["vit_pytorch", *path.relative_to(PACKAGE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        if any(part.startswith("_") for part in parts):
            continue
        name = ".".join(parts)
        page = f"# `{name}`\n\n::: {name}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, f"api/{name}.md", content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- models of CLASS -->` by the table of a class's named models."""
    lines = []
    for line in markdown.splitlines():
        if line.startswith(MODELS):
            lines.extend(table_of_models(line.removeprefix(MODELS).removesuffix(" -->")))
        else:
            lines.append(line)
    return "\n".join(lines)


def table_of_models(architecture: str) -> list[str]:
    """Give the rows of the table of an architecture's named models."""
    rows = [
        "| name | parameters | width | depth | heads | patch | published weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries().values():
        if entry.architecture.__name__ == architecture:
            sizes = " | ".join(str(entry.config[key]) for key in ("dim", "depth", "heads", "patch_size"))
            rows.append(f"| `{entry.name}` | {entry.parameters:,} | {sizes} | {entry.hub_id or ''} |")
    return rows
