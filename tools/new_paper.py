r"""Write the skeleton of a paper: its file, its named models, its table of weights, its test and its page.

    python -m tools.new_paper conv_mixer --class ConvMixer --title "Patches Are All You Need?" \
        --authors "A. Trockman, J. Z. Kolter" --year 2022 --arxiv 2201.09792 --beside xcit

The skeleton is a plain ViT without class token, which imports and builds. What stands after FILL, in the new
files and in the messages of their failing tests, is what to do.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from string import Template
from textwrap import fill

ROOT = Path(__file__).parents[1]
SKELETON = Path(__file__).parent / "skeleton"
# the files of the skeleton, by their templates
FILES = {
    "paper.py": "vit_pytorch/{name}.py",
    "registry.py": "vit_pytorch/registry/{name}.py",
    "table.py": "vit_pytorch/pretrained/tables/{name}.py",
    "test.py": "tests/papers/test_{name}_parity.py",
    "page.md": "docs/papers/{name}.md",
}
CATALOGUE = "vit_pytorch/__init__.py"
INDEX = "docs/papers/index.md"
CHANGES = "CHANGELOG.md"
WIDTH = 110


def write_skeleton(root: Path, words: dict[str, str], beside: str) -> list[Path]:
    """Write the files of a new paper and the lines that others have of it.

    Args:
        root: the repository.
        words: what the templates name: name, kind, title, stop (what ends it), authors, year, arxiv.
        beside: name of a paper that has a row in the catalogue and in the index; the new one follows it.

    Returns:
        The files that were written.

    Raises:
        ValueError: if there is a file already, no such paper to stand beside, or no line `## Unreleased`.
    """
    name = words["name"]
    files = {root / place.format(name=name): SKELETON / template for template, place in FILES.items()}
    for path in files:
        if path.exists():
            raise ValueError(f"a paper needs a name of its own: {path.relative_to(root)} is there already")
    row = Template("- $title (arXiv:$arxiv): `vit_pytorch.$name`, `$kind`").substitute(words)
    row = fill(row, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    line = Template(
        "- $kind ([arXiv:$arxiv](https://arxiv.org/abs/$arxiv)): `vit_pytorch.$name`."
    ).substitute(words)
    # Everything is made before anything is written.
    heading = "## Unreleased\n\n"
    begun = f"{heading}### Added\n\n" in (root / CHANGES).read_text(encoding="utf-8")
    missing = f"--beside names no paper of {{place}}: {beside}"
    changed = {
        root / place: insert(
            (root / place).read_text(encoding="utf-8"), after, added, error.format(place=place)
        )
        for place, after, added, error in (
            (CATALOGUE, rf"^- [^\n]*\n?[^\n]*`vit_pytorch\.{beside}`, [^\n]*\n", row, missing),
            (INDEX, rf"^{beside}\n", name, missing),
            (
                CHANGES,
                f"^{heading}### Added\n\n(?:(?:- |  )[^\n]*\n)*" if begun else f"^{heading}",
                line if begun else f"### Added\n\n{line}\n",
                "{place} has no line '## Unreleased'",
            ),
        )
    }
    made = {
        path: Template(file.read_text(encoding="utf-8")).substitute(words) for path, file in files.items()
    }
    for path, text in {**made, **changed}.items():
        path.write_text(text, encoding="utf-8")
    return [*made, *changed]


def insert(text: str, after: str, line: str, error: str) -> str:
    """Insert a line after what a pattern matches first.

    Raises:
        ValueError: if it matches nothing.
    """
    found = re.search(after, text, re.M)
    if found is None:
        raise ValueError(error)
    return f"{text[: found.end()]}{line}\n{text[found.end() :]}"


def matching(pattern: str, example: str) -> Callable[[str], str]:
    """Return a type of arguments that match a pattern whole."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None or iskeyword(text):
            raise argparse.ArgumentTypeError(f"expected something like {example}, got {text}")
        return text

    return check


def main() -> None:
    """Write the skeleton into this repository, and list what is to be filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", type=matching(r"[a-z][a-z0-9_]*", "mlp_mixer"), help="the new file's name")
    parser.add_argument("--title", required=True, help="title of the paper")
    parser.add_argument("--authors", required=True, help="initials and names of the authors")
    parser.add_argument("--year", type=matching(r"(19|20)\d\d", "2021"), required=True)
    parser.add_argument("--arxiv", type=matching(r"\d{4}\.\d{4,5}", "2105.01601"), required=True)
    paper = matching(r"[a-z][a-z0-9_]*", "xcit")
    parser.add_argument("--beside", type=paper, required=True, help="the paper after which it is listed")
    kind = matching(r"[A-Z][A-Za-z0-9]*", "MLPMixer")
    parser.add_argument(
        "--class", dest="kind", type=kind, help="name of the class; default the file's in capitals"
    )
    words = vars(parser.parse_args())
    beside = words.pop("beside")
    words["stop"] = "" if words["title"].endswith(("?", "!", ".")) else "."
    words["kind"] = words["kind"] or "".join(part.capitalize() for part in words["name"].split("_"))
    try:
        written = write_skeleton(ROOT, words, beside)
    except ValueError as error:
        sys.exit(str(error))
    for path in written:
        place = path.relative_to(ROOT)
        print(place)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "FILL" in line:
                print(f"  {place}:{number}: {line[line.index('FILL') :]}")


if __name__ == "__main__":
    main()
