"""What the documentation's pages say of the project is what the project is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
import torch

from vit_pytorch import list_models
from vit_pytorch.cli import COMMANDS, main
from vit_pytorch.export.bench_worker import count_flops
from vit_pytorch.registry import entries

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-\d+)?")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
PAPERS = sorted(path for path in DOCS.glob("papers/*.md") if path.stem != "index")
EXTENSIONS = (
    *("sphinx.ext.autodoc", "sphinx.ext.napoleon", "model_tables", "paper_groups", "proof_tables"),
    *("figures", "page_html", "command_reference", "python_reference"),
)
COUNTED = {row["name"]: row for row in json.loads((DOCS / "measured" / "zoo.json").read_text())}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_paper_is_in_one_group() -> None:
    groups = re.findall(r"```\{paper-group\}\n(.*?)```", read("docs/papers/index.md"), re.S)
    pages = [path.stem for path in DOCS.glob("papers/*.md") if path.stem != "index"]
    assert sorted(" ".join(groups).split()) == sorted(pages)


@pytest.mark.parametrize("page", PAPERS, ids=lambda path: path.stem)
def test_figures_are_drawn(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    read_figure = import_module("figures").read_figure
    for figure in re.findall(r"```\{architecture\}\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        assert read_figure(figure.splitlines())


def test_readmes_are_twins() -> None:
    english, chinese = read("README.md"), read("README.zh-CN.md")
    assert [line.count("#") for line in english.splitlines() if line.startswith("#")] == [
        line.count("#") for line in chinese.splitlines() if line.startswith("#")
    ]
    for found in (LINK, re.compile(r"\d\.\d+(?:e-\d+)?|\d\d+\.\d+ %")):
        assert set(found.findall(english)) - {"README.zh-CN.md"} == set(found.findall(chinese)) - {
            "README.md"
        }


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/standing.md"])
def test_number_of_models(page: str) -> None:
    """What a page says is a floor, which new papers do not falsify, and no low one."""
    text = read(page)
    (models,) = map(int, re.findall(r"\b(\d+) named models", text))
    (papers,) = map(int, re.findall(r"\b(\d+)\b[^|]{,20}(?:architectures|one file)", text))
    assert 0.8 * len(list_models()) < models <= len(list_models())
    architectures = {entry.architecture.__name__ for entry in entries().values()}
    assert 0.8 * len(architectures) < papers <= len(architectures)


def shares(rows: list[dict[str, Any]], name: str, package: str, figure: str) -> list[float]:
    return [row[figure] for row in rows if (row["name"], row["package"]) == (name, package) and figure in row]


def gaps_of_learning(rows: list[dict[str, Any]], figure: str) -> dict[str, float]:
    """By how many points each case is ahead of the public package's."""
    found = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        ours, public = (shares(rows, name, package, figure) for package in ("ours", "public"))
        if ours and public:
            found[name] = 100 * (mean(ours) - mean(public))
    return found


def test_figures_of_the_front_page_are_measured() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \| \[.+\]\((.+)\) \|$", read("docs/index.md"), re.M)
    assert len(rows) > 5
    peers = ("timm", "torchvision")
    cells = [row for row in read_rows("speed.json") if row["model"] == "vit_small_patch16_224"]
    ratios = [row["ratio"][peer] for row in cells for peer in peers]
    taught = gaps_of_learning(read_rows("learning.jsonl"), "accuracy")
    shown = {
        "weights.md": f"{max(row['difference'] for row in read_rows('loading.json')):.1e}".replace(
            "e-0", "e-"
        ),
        "measured/speed.md": f"{min(ratios):.2f} {max(ratios):.2f}",
        "measured/learning.md": f"{median(taught.values()):+.1f} {len(taught)} models",
    }
    for what, figure, page in rows:
        proof = shown.get(page, (DOCS / page).read_text(encoding="utf-8"))
        assert [number for number in NUMBER.findall(figure) if number not in proof] == [], what


def test_extras_are_explained() -> None:
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    table = read("docs/installation.md").partition("| extra |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == [*extras]


def test_models_are_counted_in_order() -> None:
    """New ones may not be counted yet."""
    assert [*COUNTED] == [name for name in list_models() if name in COUNTED]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "levit_128s", "mobilevit_xxs", "vit_1d_tiny_patch16_1024"]
)
def test_counts_of_operations(name: str) -> None:
    with torch.device("meta"):
        model = entries()[name].build().eval()
        size = tuple(model.default_cfg["input_size"])
        macs = count_flops(model, size) // 2
    assert COUNTED[name] == {"name": name, "input": [*size], "macs": macs}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages that are made from the code, by the documentation's own extensions."""
    pytest.importorskip("myst_parser")
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for folder in ("papers", "measured"):
        (source / folder).mkdir()
    names = ("deployed", "options", "pretraining", "going_on", "few_labels", "learning", "loader", "speed")
    measured = ["papers/tome", *(f"measured/{name}" for name in (*names, "papers"))]
    for page in ("commands", "zoo", "proof", "papers/index", "papers/swin", *measured):
        (source / f"{page}.md").write_text(read(f"docs/{page}.md"), encoding="utf-8")
    (source / "api.md").write_text(
        "# CaiT\n\n```{eval-rst}\n.. automodule:: vit_pytorch.cait\n   :members:\n```\n"
    )
    (source / "index.md").write_text(
        "# Pages\n\n```{toctree}\ncommands\nzoo\nproof\napi\npapers/index\n" + "\n".join(measured) + "\n```\n"
    )
    settings = (
        f"import sys; sys.path.insert(0, {str(DOCS)!r})",
        f"extensions = ['myst_parser', {', '.join(map(repr, EXTENSIONS))}]",
        "keep_warnings = True",
    )
    (source / "conf.py").write_text("\n".join(settings))
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(source), str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_reference_holds_every_option(
    command: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    options = re.findall(r"^  (?:-\w, )?(--[\w.]+)", capsys.readouterr().out, re.M)
    assert options
    section = text_of(site / "commands.html").partition(f"\nvit {command}\n")[2]
    assert [option for option in options if not re.search(rf"{option}\b", section)] == []


def test_table_of_models_holds_every_model(site: Path) -> None:
    text = (site / "zoo.html").read_text(encoding="utf-8")
    names = re.findall(r'<tr class="row-(?:odd|even)"><td><p><code[^>]*><span class="pre">(\w+)</span>', text)
    assert names == list_models()
    assert "zoo.js" in text
    assert "zoo.js" not in (site / "commands.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [path for path in PAPERS if path.stem != "public"], ids=lambda path: path.stem
)
def test_every_paper_has_a_figure(page: Path) -> None:
    """That of the public package's systems has none: it is a list of options."""
    (figure,) = re.findall(r"^```\{architecture\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    assert "→" in figure


def test_figures_have_a_text_alternative(site: Path) -> None:
    text = (site / "papers" / "swin.html").read_text(encoding="utf-8")
    (words,) = re.findall(r'<svg class="architecture" role="img" aria-label="([^"]+)"', text)
    assert "model: image, then patches (4 × 4), then stage 1 (1/4)" in words
    assert "shifted block: (norm, then attention (within shifted windows)) added to the input" in words


def test_python_reference_shows_what_a_class_takes(site: Path) -> None:
    html = (site / "api.html").read_text(encoding="utf-8")
    text = " ".join(text_of(site / "api.html").split())
    assert "CaiT(*, image_size: int | Sequence[int], patch_size: int | Sequence[int]" in text
    assert "<p>H. Touvron, M. Cord" in html
    assert "<p>Family: plain</p>\n<p>Differs from the paper: nothing.</p>" in html


def test_papers_have_a_year_and_a_summary(site: Path) -> None:
    text = (site / "papers" / "index.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="row-(?:odd|even)"><td>(.*?)</tr>', text, re.S)
    assert len(rows) == len([*DOCS.glob("papers/*.md")]) - 1


def cells_of(page: Path) -> list[list[list[str]]]:
    """The tables of a page, as rows of the texts of their cells, without the header."""
    html = page.read_text(encoding="utf-8")
    return [
        [
            [
                unescape(re.sub(r"<[^>]+>", "", cell)).strip()
                for cell in re.findall(r"<td>(.*?)</td>", row, re.S)
            ]
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.S)
        ]
        for body in re.findall(r"<tbody>(.*?)</tbody>", html, re.S)
    ]


def read_rows(name: str) -> list[dict[str, Any]]:
    text = read(f"docs/measured/{name}")
    return [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)


def test_proof_has_a_row_for_every_architecture_with_the_figures_of_the_files(site: Path) -> None:
    proof, *_ = cells_of(site / "proof.html")
    named = list(dict.fromkeys(entry.architecture.__name__ for entry in entries().values()))
    assert [row[0] for row in proof] == named

    def most(rows: list[dict[str, Any]], name: str, figure: str) -> str:
        values = [row[figure] for row in rows if row["architecture"] == name and figure in row]
        return f"{max(values):.1e}".replace("e-0", "e-").replace("0.0e+00", "0") if values else "not measured"

    loaded = [row for row in read_rows("loading.json") if row["format"] != "vit_pytorch"]
    steps, taught, files = map(read_rows, ("steps.json", "learning.jsonl", "exports.json"))
    for name, logits, gradients, stepped, learned, _, exports in proof:
        assert logits == most(loaded, name, "difference")
        assert gradients == most(steps, name, "gradients")
        after = [most(steps, name, figure) for figure in ("losses", "logits_after")]
        assert stepped == (", ".join(after) if "not measured" not in after else "not measured")
        mine = [row for row in taught if (row["package"], row.get("architecture")) == ("ours", name)]
        mine = [row for row in mine if row["name"] == mine[0]["name"]]
        if mine:
            assert learned.startswith(f"{100 * mean(row['accuracy'] for row in mine):.1f} %")
        else:
            assert learned == "not measured"
        written = [row for row in files if row["architecture"] == name]
        written = [row for row in written if row["model"] == written[0]["model"]]
        outcomes = [
            most([row], name, "difference")
            if "difference" in row
            else ("converted" if "converted" in row else "refused")
            for row in written
        ]
        expected = [f"{row['format']} {outcome}" for row, outcome in zip(written, outcomes, strict=True)]
        assert exports == (", ".join(expected) or "not measured")


def test_proof_says_where_its_figures_come_from(site: Path) -> None:
    *_, origins = cells_of(site / "proof.html")
    files = (
        "loading.json",
        "steps.json",
        "learning.jsonl",
        "exports.json",
        "convergence.json",
        "deployed.json",
        "options.json",
        "pretraining.json",
        "going_on.json",
        "few_labels.json",
        "loader.json",
        "merging.json",
        "speed.json",
    )
    for name in files:
        mine = [row for row in origins if row[0] == name]
        rows = read_rows(name)
        assert sum(int(row[1]) for row in mine) == len(rows)
        for key, column in (("date", 2), ("machine", 3), ("commit", 4)):
            assert {row[column] for row in mine} == {row.get(key, "not recorded") for row in rows}


def test_convergence_points_are_those_of_the_file(site: Path) -> None:
    _, points, _ = cells_of(site / "proof.html")
    rows = read_rows("convergence.json")
    assert [row[0] for row in points] == [row["name"] for row in rows]
    for (_, goal, middle, seeds, _), row in zip(points, rows, strict=True):
        assert goal == f"{row['goal']:.0%} {row['figure']}"
        assert int(middle) == round(row["median"])
        assert seeds == f"{min(row['steps'])} to {max(row['steps'])}"


def test_deployed_forms_are_those_of_the_file(site: Path) -> None:
    (forms,) = cells_of(site / "measured" / "deployed.html")
    rows = [row for row in read_rows("deployed.json") if "ms" in row]
    assert len(forms) == len(rows) > 10
    known = {(row["model"], str(row["batch"]), row["form"]): row for row in rows}
    for model, batch, form, _, ratio, *_ in forms:
        assert ratio == f"{known[model, batch, form]['ratio']:.2f}"


def middle(runs: list[dict[str, float]], name: str) -> str:
    values = sorted(100 * run[name] for run in runs)
    return f"{sum(values) / len(values):.1f} ({values[0]:.1f} to {values[-1]:.1f})"


def test_options_are_those_of_the_file(site: Path) -> None:
    (shown,) = cells_of(site / "measured" / "options.html")
    rows = read_rows("options.json")
    assert [row[0] for row in shown] == [row["option"] for row in rows]
    assert len(rows) == 21
    for (_, accuracy, larger, _), row in zip(shown, rows, strict=True):
        assert len(row["runs"]) == 3
        assert (accuracy, larger) == (middle(row["runs"], "accuracy"), middle(row["runs"], "larger"))


def test_figures_of_pretraining_are_those_of_the_file(site: Path) -> None:
    methods, few = cells_of(site / "measured" / "pretraining.html")
    rows = {(row["data"], row["method"]): row["runs"] for row in read_rows("pretraining.json")}
    assert len(methods) + len(few) == len(rows) == 14
    for data, method, *figures, _ in methods:
        names = ("knn before", "knn after", "linear before", "linear after")
        assert figures == [middle(rows[data, method], name) for name in names]
    for data, *figures in few:
        assert figures == [middle(rows[data, "fine-tuning"], name) for name in ("scratch", "MAE")]


def test_figures_of_going_on_are_those_of_the_file(site: Path) -> None:
    (shown,) = cells_of(site / "measured" / "going_on.html")
    rows = read_rows("going_on.json")
    assert len(shown) == len(rows) > 3
    for (case, _, anchor, start, epochs, kept, _), row in zip(shown, rows, strict=True):
        assert (case, anchor, start) == (row["case"], str(row["anchor"]), f"{100 * row['start']:.1f}")
        assert epochs == ", ".join(f"{100 * value:.1f}" for value in row["epochs"])
        # what is kept is no worse than the start
        worth = [row["start"], *row["epochs"]]
        number = 0 if kept == "the start" else int(kept.removeprefix("epoch "))
        assert worth[number] == max(worth)


def test_figures_of_few_labels_are_those_of_the_file(site: Path) -> None:
    (shown,) = cells_of(site / "measured" / "few_labels.html")
    rows = read_rows("few_labels.json")
    words = {"scratch": "scratch", "weights": "weights of CIFAR-10"}
    for start, epochs in {"unlabelled": 40, "longer": 120}.items():
        words[start] = f"unlabelled photographs, {epochs} epochs"
    groups = {(row["model"], words[row["start"]]) for row in rows}
    assert sorted(groups) == sorted((model, start) for model, _, start, *_ in shown)
    for model, labels, start, accuracy, ahead in shown:
        scratch, found = (
            [row for row in rows if (row["model"], words[row["start"]]) == (model, of)]
            for of in ("scratch", start)
        )
        assert int(labels) == 10
        assert [row["seed"] for row in found] == [row["seed"] for row in scratch] == [0, 1, 2]
        assert accuracy == middle(found, "accuracy")
        gains = [row["accuracy"] - other["accuracy"] for row, other in zip(found, scratch, strict=True)]
        assert float(ahead or 0) == pytest.approx(100 * sum(gains) / 3, abs=0.06)


def test_figures_of_learning_are_those_of_the_file(site: Path) -> None:
    classified, *_, unlabelled = cells_of(site / "measured" / "learning.html")
    rows = read_rows("learning.jsonl")
    for figure, shown in (("accuracy", classified), ("linear after", unlabelled)):
        *cases, average, middle = shown
        gaps = gaps_of_learning(rows, figure)
        assert {case[0] for case in cases} == {row["name"] for row in rows if figure in row}
        for name, *figures, ahead in cases:
            assert ahead == (f"{gaps[name]:+.1f}" if name in gaps else "")
            for package, shown_figure in (("ours", figures[len(figures) // 2 - 1]), ("public", figures[-1])):
                values = shares(rows, name, package, figure)
                assert shown_figure.startswith(f"{100 * mean(values):.1f}" if values else "not measured")
        assert average[:: len(average) - 1] == [f"mean of {len(gaps)} gaps", f"{mean(gaps.values()):+.1f}"]
        assert middle[:: len(middle) - 1] == ["median", f"{median(gaps.values()):+.1f}"]


def test_figures_of_speed_are_those_of_the_file(site: Path) -> None:
    small, *_ = cells_of(site / "measured" / "speed.html")
    (others,) = cells_of(site / "measured" / "papers.html")
    rows = read_rows("speed.json")
    mine = [row for row in rows if row["model"] == "vit_small_patch16_224" and row["batch"] in (1, 8)]
    assert len(small) == len(mine) == 8
    for (_, batch, _, timm, torchvision, public, _), row in zip(small, mine, strict=True):
        assert int(batch) == row["batch"]
        ratios = (row["ratio"][name] for name in ("timm", "torchvision", "public vit-pytorch"))
        assert [timm, torchvision, public] == [f"{ratio:.2f}" for ratio in ratios]
    four = {(row["model"], row["mode"]): row["ratio"] for row in rows if row["batch"] == 4}
    assert [row[0] for row in others] == list(dict.fromkeys(model for model, _ in four))
    for model, forward, training, _ in others:
        for mode, shown in (("forward", forward), ("train", training)):
            ratios = four.get((model, mode), {"ours": 1.0}).items()
            assert shown == ", ".join(f"{peer} {value:.2f}" for peer, value in ratios if peer != "ours")


def test_figures_of_loaders_are_those_of_the_file(site: Path) -> None:
    shown, *_ = cells_of(site / "measured" / "loader.html")
    rows = read_rows("loader.json")
    assert [row["source"] for row in rows] == ["photographs", "shards"]
    for library, *rates in shown:
        for rate, row in zip(rates, rows, strict=True):
            assert rate.split()[0] == f"{row['images_per_second'][library]:.0f}"
            if library != "ours":
                assert rate.split()[1] == f"({row['ours_by'][library]['value']:.2f}"


def test_figures_of_merging_are_those_of_the_file(site: Path) -> None:
    _, shown = cells_of(site / "papers" / "tome.html")
    rows = read_rows("merging.json")
    assert len(shown) == len(rows) > 5
    for (case, merged, accuracy, _), row in zip(shown, rows, strict=True):
        assert (case, merged) == (row["case"], str(row["merged"]))
        assert accuracy == f"{row['accuracy']:.2%}"


def test_figures_of_steps_are_those_of_rounding() -> None:
    rows = read_rows("steps.json")
    assert max(row["gradients"] for row in rows if "gradients" in row) < 1e-4
    assert max(row["losses"] for row in rows) < 1e-3


def test_licences_are_those_of_the_file(site: Path) -> None:
    (zoo,) = cells_of(site / "zoo.html")
    licensed = {row["name"]: row for row in json.loads(read("docs/measured/licences.json"))["models"]}
    assert len(licensed) > 300
    for row in zoo:
        name, licence, tags = row[0], row[8], row[10]
        hub_id, known = entries()[name].hub_id, licensed.get(name)
        if hub_id is None:
            assert licence == ""
        elif known is None or known["hub_id"] != hub_id:
            assert licence == "not measured yet"
        else:
            assert licence == (known["license"] or "see its page")
        assert [tag for tag in tags.split(", ") if tag] == [
            tag for tag in (known or {"tags": []})["tags"] if entries()[name].repository(tag) != hub_id
        ]
