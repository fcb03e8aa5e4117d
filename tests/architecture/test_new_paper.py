"""`tools.new_paper` writes a skeleton that imports, and whose tests fail by saying what is to be done."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COPIED = ("vit_pytorch", "tools", "tests", "docs/papers", "pyproject.toml", "CHANGELOG.md")
WORDS = {
    "--title": "A Paper That Nobody Has Written",
    "--authors": "N. Obody",
    "--year": "2026",
    "--arxiv": "2601.00000",
    "--beside": "pit",
}
ARGUMENTS = [word for pair in WORDS.items() for word in pair]
SCRIPT = """
import sys
import torch
import vit_pytorch
from vit_pytorch import create_model
from vit_pytorch.pretrained.tables import formats_for

assert vit_pytorch.__file__.startswith(sys.argv[1]), vit_pytorch.__file__
assert "(arXiv:2601.00000): `vit_pytorch.nobody_vit`, `NobodyVit`" in " ".join(vit_pytorch.__doc__.split())
model = create_model("nobody_vit_tiny_patch16_224", image_size=32, patch_size=4, depth=1)
assert type(model).__name__ == "NobodyVit"
assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
assert [layout.name for layout in formats_for(model)] == ["vit_pytorch", "timm"]
"""


def call(copy: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, whose modules come before the installed ones."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(copy), "PATH": ""},
    )


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy")
    for place in COPIED:
        if (root / place).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "golden", "fixtures")
            shutil.copytree(root / place, copy / place, ignore=ignored)
        else:
            shutil.copy(root / place, copy / place)
    return copy


@pytest.fixture(scope="module")
def written(copy: Path) -> str:
    """What the tool says of the files that it writes."""
    done = call(copy, "-m", "tools.new_paper", "nobody_vit", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_files_and_what_to_fill_in_are_listed(copy: Path, written: str) -> None:
    files = [line for line in written.splitlines() if not line.startswith(" ")]
    assert len(files) == len(set(files)) == 8
    assert all(re.search("nobody_?vit", (copy / file).read_text(), re.I) for file in files)
    assert re.search(r"vit_pytorch/nobody_vit.py:\d+: FILL: what the paper changes", written)
    assert "pit\nnobody_vit\n" in (copy / "docs" / "papers" / "index.md").read_text()
    # It is the last of what is added.
    added = (copy / "CHANGELOG.md").read_text().partition("### Added\n\n")[2].partition("\n\n")[0]
    assert added.splitlines()[-1].endswith("`vit_pytorch.nobody_vit`.")


def test_skeleton_builds(copy: Path, written: str) -> None:
    done = call(copy, "-c", SCRIPT, str(copy))
    assert done.returncode == 0, done.stderr


def test_tests_of_the_skeleton_say_what_to_do(copy: Path, written: str) -> None:
    tests = ("tests/papers/test_nobody_vit_parity.py", "tests/architecture/test_source.py")
    chosen = ("-k", "(nobody and not learns) or left_to_fill or name_their_source or catalogue")
    done = call(copy, "-m", "pytest", *tests, *chosen)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.M))
    assert failed == {
        "test_named_models_equal_the_reference",
        "test_what_the_paper_changes",
        "test_nothing_is_left_to_fill",
    }
    assert "FILL: compare logits and parameters of each named model" in done.stdout
    assert "FILL: hold the paper's own equation against an independent computation" in done.stdout
    assert "2 passed" in done.stdout


def test_the_first_paper_after_a_release(copy: Path, tmp_path: Path) -> None:
    """Its line is not among those of the release, and the title keeps the mark that it ends with."""
    after = tmp_path / "after"
    for place in ("vit_pytorch/__init__.py", "docs/papers/index.md", "tools", "CHANGELOG.md"):
        (after / place).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (copy / place).is_dir() else shutil.copy)(copy / place, after / place)
    for folder in ("vit_pytorch/registry", "vit_pytorch/pretrained/tables", "tests/papers"):
        (after / folder).mkdir(parents=True)
    (after / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.2.0\n\n### Added\n\n- A.\n")
    done = call(after, "-m", "tools.new_paper", "late_vit", *ARGUMENTS, "--title", "Is It Late? It Is!")
    assert done.returncode == 0, done.stderr
    head, rest = (after / "CHANGELOG.md").read_text().split("## 0.2.0")
    assert re.fullmatch(r"# Changelog\n\n## Unreleased\n\n### Added\n\n- LateVit .*\.\n\n", head)
    assert rest == "\n\n### Added\n\n- A.\n"
    assert (after / "vit_pytorch/late_vit.py").read_text().startswith('"""Is It Late? It Is!\n')


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["pit", *ARGUMENTS], "a paper needs a name of its own: vit_pytorch/pit.py is there already"),
        (
            ["other", *ARGUMENTS[:-1], "nothing"],
            "--beside names no paper of vit_pytorch/__init__.py: nothing",
        ),
        (["Other", *ARGUMENTS], "expected something like mlp_mixer, got Other"),
        (["class", *ARGUMENTS], "expected something like mlp_mixer, got class"),
        (["other", *ARGUMENTS, "--class", "Other-ViT"], "expected something like MLPMixer, got Other-ViT"),
        (["other", *ARGUMENTS, "--year", "soon"], "expected something like 2021, got soon"),
    ],
)
def test_what_cannot_be_written_is_refused(copy: Path, changed: list[str], message: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.md")}
    done = call(copy, "-m", "tools.new_paper", *changed)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (copy / "vit_pytorch" / "other.py").exists()
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*.md")}
