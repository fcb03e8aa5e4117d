from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vit_pytorch"
MACHINERY = {
    "__init__",
    "__main__",
    "base",
    "isotropic",
    "hierarchical",
    "legacy",
    "extras",
    "lettering",
    "storage",
    "weights",
    "preprocessing",
    "create",
    "cli",
}
WRAPPERS = {"accept_video_wrapper", "backbone", "recorder", "extractor", "efficient"}


@dataclass(frozen=True)
class Module:
    """A file of the package, parsed."""

    path: Path
    tree: ast.Module

    @property
    def name(self) -> str:
        """The file without suffix, from the package on, such as `layers/patches`."""
        return self.path.relative_to(PACKAGE).with_suffix("").as_posix()

    @property
    def part(self) -> str:
        """The module or folder at the root of the package that the file belongs to."""
        return self.name.split("/")[0]

    @property
    def is_paper(self) -> bool:
        return "/" not in self.name and self.name not in MACHINERY | WRAPPERS

    @property
    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)}


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    return [Module(path, ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
