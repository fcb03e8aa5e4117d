"""What the source says of itself: one class for one thing, papers named, no trace of a machine."""

import ast
import re
import subprocess

import pytest

import vit_pytorch

SHARED = ("Attention", "FeedForward", "DropPath", "LayerScale", "PatchEmbed", "Residual")
MACHINE = re.compile(
    r"(?<![\w.~])/(?:work|farm|root|home|tmp|Users)/|--(?:extra-)?index-url|registry *= *http", re.I
)
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".sh", ".cff", ".json", ".html", ""}


def test_layers_are_defined_once(modules):
    owner = {name: m.name for m in modules if m.part == "layers" for name in m.classes}
    again = [
        f"{name} of {owner[name]} is defined in {m.name} too"
        for m in modules
        for name in m.classes
        if name in owner and owner[name] != m.name
    ]
    assert len(owner) > 10
    assert again == []


def test_kinds_of_layers_extend_the_shared_ones(modules):
    """A class outside `layers` that is called SomethingAttention, for one, extends or composes those of
    `layers`."""
    family = {name for m in modules if m.part == "layers" for name in m.classes}
    outside = {
        f"{m.name}: {name}": node for m in modules if m.part != "layers" for name, node in m.classes.items()
    }
    while True:
        heirs = {
            node.name
            for node in outside.values()
            if any(ast.unparse(base).split(".")[-1] in family for base in node.bases)
        }
        if heirs <= family:
            break
        family |= heirs
    strangers = [
        where
        for where, node in outside.items()
        if node.name.endswith(SHARED)
        and node.name not in family
        and not re.search("kernel|mix_heads|project|self.attention", ast.unparse(node))
    ]
    assert strangers == []


def test_papers_name_their_source(modules):
    for module in modules:
        if not module.is_paper:
            continue
        doc = ast.get_docstring(module.tree) or ""
        title, _, rest = doc.partition("\n\n")
        assert title.endswith((".", "?")), f"{module.name}: the first line is the paper's title"
        assert re.match(r"[A-Z].+ (?:19|20)\d\d, arXiv:\d{4}\.\d{4,5}\.", rest.replace("\n", " ")), (
            f"{module.name}: authors, year and arXiv id follow the title"
        )
        assert re.search(r"^Family: [\w-]+$", doc, re.M), f"{module.name}: Family"
        assert re.search(r"^Differs from the paper: \w", doc, re.M), f"{module.name}: Differs from the paper"


def test_catalogue_is_complete(modules):
    row = re.compile(r"^- .*\(arXiv:([\d.]+)\):\s+`vit_pytorch\.(\w+)`, ", re.M)
    listed = {name: arxiv for arxiv, name in row.findall(vit_pytorch.__doc__)}
    papers = {m.name: ast.get_docstring(m.tree) or "" for m in modules if m.is_paper}
    assert listed.keys() == papers.keys()
    for name, arxiv in listed.items():
        assert f"arXiv:{arxiv}." in papers[name], name


def test_nothing_is_left_to_fill(root, modules):
    """What `tools.new_paper` leaves to its user."""
    files = [m.path for m in modules] + [*root.glob("docs/papers/*.md"), *root.glob("tests/papers/*.py")]
    assert [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\bFILL\b", line)
    ] == []


def test_no_trace_of_a_machine(root):
    if not (root / ".git").exists():
        pytest.skip("which files belong to the project is known in a clone only")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    ran = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True)
    files = [root / name for name in ran.stdout.splitlines()]
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files
        if path.is_file() and path.suffix in TEXT and path.name != "LICENSE"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert len(files) > 20
    assert found == []
