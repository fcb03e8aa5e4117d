"""Directives for the page of proof: what was measured of each architecture, and where figures come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, ClassVar

from docutils import nodes
from model_tables import largest_differences, paper_page
from page_nodes import Cell, inline, page_link, table
from sphinx.util.docutils import SphinxDirective

from vit_pytorch.registry import entries, find_entry
from vit_pytorch.registry.entry import ModelEntry

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Rows = list[dict[str, Any]]

MEASURED = Path(__file__).parent / "measured"
# the files of figures, each with the command that writes it
FILES = {
    "loading.json": "python benchmarks/loading.py docs/measured/loading.json",
    "steps.json": "python benchmarks/steps.py docs/measured/steps.json",
    "learning.jsonl": "python benchmarks/learning.py --public FOLDER --json docs/measured/learning.jsonl",
    "speed.json": "python benchmarks/speed.py --public FOLDER --json docs/measured/speed.json",
    "exports.json": "python benchmarks/exports.py docs/measured/exports.json",
    "deployed.json": "python benchmarks/deployed.py docs/measured/deployed.json",
    "convergence.json": "python benchmarks/convergence.py docs/measured/convergence.json",
    "options.json": "python benchmarks/options.py idx:FOLDER --json docs/measured/options.json",
    "pretraining.json": "python benchmarks/pretraining.py digits idx:FOLDER --json FILE",
    "going_on.json": "python benchmarks/going_on.py docs/measured/going_on.json --signs FOLDER",
    "few_labels.json": "python benchmarks/few_labels.py docs/measured/few_labels.json --signs FOLDER",
    "loader.json": "python benchmarks/loader.py --shards PATTERN --json docs/measured/loader.json",
    "merging.json": "python benchmarks/merging.py docs/measured/merging.json --signs FOLDER",
}
ORIGIN = ("date", "machine", "commit", "torch")
NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"
COLUMNS = (
    "architecture",
    "logits",
    "gradients",
    "ten steps: losses, logits",
    "learning: here, public",
    "speed",
    "exports",
)


def read_rows(name: str) -> Rows:
    """Read the rows of a file of figures; none where nobody has written it yet."""
    file = MEASURED / name
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def short(value: float) -> str:
    """Write a difference as the other pages do: 2.2e-6, or 0."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def architectures() -> dict[str, ModelEntry]:
    """Return the first named model of each architecture by the name of its class."""
    found: dict[str, ModelEntry] = {}
    for entry in entries().values():
        found.setdefault(entry.architecture.__name__, entry)
    return found


def largest(rows: Rows, figure: str) -> dict[str, str]:
    """Return the largest value of a figure by architecture."""
    found: dict[str, float] = {}
    for row in rows:
        if figure in row:
            name = row["architecture"]
            found[name] = max(found.get(name, 0.0), row[figure])
    return {name: short(value) for name, value in found.items()}


def paired(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """Return two figures of each architecture as one cell."""
    return {name: f"{value}, {second[name]}" for name, value in first.items()}


def learned(rows: Rows) -> dict[str, str]:
    """Return the accuracies after equal steps by architecture, of the first case that was taught of it."""
    case = {
        row["architecture"]: row["name"]
        for row in reversed(rows)
        if row["package"] == "ours" and "architecture" in row
    }
    return {architecture: accuracies(rows, name) for architecture, name in case.items()}


def accuracies(rows: Rows, name: str) -> str:
    """Write the mean accuracy of a case here and in the public package, and the number of seeds."""
    cells = []
    for package in ("ours", "public"):
        values = [100 * row["accuracy"] for row in rows if fits(row, package, name, "accuracy")]
        seeds = f" ({len(values)} seeds)" if len(values) > 1 else ""
        cells.append(f"{mean(values):.1f} %{seeds}" if values else NOT_MEASURED)
    return ", ".join(cells)


def timed(rows: Rows) -> dict[str, str]:
    """Return the range of the ratios of each library by architecture."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_peers = ratios.setdefault(row["architecture"], {})
        for library, value in row["ratio"].items():
            if library != "ours":
                of_peers.setdefault(library, []).append(value)
    return {
        name: ", ".join(f"{peer} {min(some):.2f} to {max(some):.2f}" for peer, some in of_peers.items())
        for name, of_peers in ratios.items()
    }


def exported(rows: Rows) -> dict[str, str]:
    """Return the formats with the differences of their outputs by architecture, of its first model."""
    found: dict[str, list[str]] = {}
    first = {row["architecture"]: row["model"] for row in reversed(rows)}
    for row in rows:
        if row["model"] != first[row["architecture"]]:
            continue
        if "difference" in row:
            outcome = short(row["difference"])
        else:
            outcome = "converted" if "converted" in row else "refused"
        found.setdefault(row["architecture"], []).append(f"{row['format']} {outcome}")
    return {name: ", ".join(outcomes) for name, outcomes in found.items()}


def columns_of_figures() -> Sequence[Mapping[str, str]]:
    """Return the columns after the first, each by architecture."""
    steps = read_rows("steps.json")
    loaded = largest_differences(read_rows("loading.json"))
    return (
        {name: short(value) for name, value in loaded.items()},
        largest(steps, "gradients"),
        paired(largest(steps, "losses"), largest(steps, "logits_after")),
        learned(read_rows("learning.jsonl")),
        timed(read_rows("speed.json")),
        exported(read_rows("exports.json")),
    )


class Proof(SphinxDirective):
    """`{proof}` lists every architecture of named models with what was measured of it."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        for name in FILES:
            self.env.note_dependency(str(MEASURED / name))
        figures = columns_of_figures()
        rows: list[list[Cell]] = [[*COLUMNS]]
        for name, entry in architectures().items():
            page = page_link(name, f"papers/{paper_page(entry)}", here=self.env.docname)
            rows.append([page, *(column.get(name, NOT_MEASURED) for column in figures)])
        return [table(rows, classes=["proof"])]


class FiguresTable(SphinxDirective):
    """Base of the directives that make a table of one file of figures.

    Attributes:
        file: name of the file.
    """

    file: ClassVar[str]

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_dependency(str(MEASURED / self.file))
        return [table(self.rows(read_rows(self.file)))]

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return the header and a row for each that is shown of the file's rows."""
        raise NotImplementedError


class Convergence(FiguresTable):
    """`{convergence}` lists how many steps ten seeds take to a stated figure, and the bounds of the test."""

    file = "convergence.json"

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each model."""
        rows: list[list[Cell]] = [["model", "goal", "steps, median", "all seeds", "bounds"]]
        for row in found:
            steps, (low, high) = row["steps"], row["bounds"]
            goal = f"{row['goal']:.0%} {row['figure']}"
            cells = (row["name"], goal, f"{row['median']:.0f}", f"{min(steps)} to {max(steps)}")
            rows.append([*cells, f"{low:.0f} to {high:.0f}"])
        return rows


class Deployed(FiguresTable):
    """`{deployed}` lists how fast models are in each form, from the fastest on, and what was refused."""

    file = "deployed.json"

    def run(self) -> list[nodes.Node]:
        """Write the table, and a list of the refusals below it."""
        made = super().run()
        refused = {
            f"`{row['model']}` as {row['form']}: {row['error']}": None
            for row in read_rows(self.file)
            if "error" in row
        }
        items = (nodes.list_item("", nodes.paragraph("", "", *inline(text))) for text in refused)
        return [*made, nodes.bullet_list("", *items)] if refused else made

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each form of each model and number of images."""
        rows: list[list[Cell]] = [["model", "images", "form", "ms", "ratio", "spread", "of the peak", "MiB"]]
        models = [row["model"] for row in found]
        timed = [row for row in found if "error" not in row]
        for row in sorted(timed, key=lambda r: (models.index(r["model"]), r["batch"], r["ms"])):
            share = f"{row['of_peak']:.0%}" if "of_peak" in row else ""
            times = f"{row['ms']:.1f}", f"{row['ratio']:.2f}", f"{row['spread']:.2f}"
            peak = f"{row['peak_mib']:.0f}"
            rows.append([f"`{row['model']}`", str(row["batch"]), row["form"], *times, share, peak])
        return rows


def spread(values: Sequence[float]) -> str:
    """Write several shares as a mean and a range, in per cent, and one as it is."""
    found = [100 * value for value in values]
    limits = f" ({min(found):.1f} to {max(found):.1f})" if len(found) > 1 else ""
    return f"{mean(found):.1f}{limits}"


class Options(FiguresTable):
    """`{options}` lists what each option of the plain ViT is worth, and its time beside the plain one's."""

    file = "options.json"

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each option."""
        rows: list[list[Cell]] = [["option", "at 28 pixels", "at 40 pixels", "time of training"]]
        plain = 0.0
        for row in found:
            runs = row["runs"]
            seconds = sum(run["seconds"] for run in runs)
            plain = plain or seconds
            figures = (spread([run[name] for run in runs]) for name in ("accuracy", "larger"))
            rows.append([row["option"], *figures, f"{seconds / plain:.2f}"])
        return rows


class Pretraining(FiguresTable):
    """`{pretraining}` lists what features are worth before and after learning without labels.

    With the argument `few`, what they are worth as a start where few labels are known.
    """

    file = "pretraining.json"
    optional_arguments = 1

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each method and data set, or for each number of labels."""
        few = self.arguments == ["few"]
        names = ("scratch", "MAE") if few else ("knn before", "knn after", "linear before", "linear after")
        shown = ("from scratch", "from MAE's weights") if few else names
        rows: list[list[Cell]] = [
            ["data", *([] if few else ["method"]), *shown, *([] if few else ["least gain"])]
        ]
        for row in found:
            runs = row["runs"]
            if (row["method"] == "fine-tuning") != few:
                continue
            cells = [row["data"], *([] if few else [row["method"]])]
            cells += [spread([run[name] for run in runs]) for name in names]
            if not few:
                gain = min(run["knn after"] - run["knn before"] for run in runs)
                cells.append(f"{100 * gain:+.1f}")
            rows.append([*cells])
        return rows


class GoingOn(FiguresTable):
    """`{going-on}` lists what features are worth after going on from trained weights, held and not."""

    file = "going_on.json"

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each run."""
        rows: list[list[Cell]] = [
            ["case", "rate", "`--anchor`", "start", "each epoch", "kept", "test images"]
        ]
        for row in found:
            epochs = ", ".join(f"{100 * value:.1f}" for value in row["epochs"])
            kept = int(row["kept"].removeprefix("epoch-"))
            cells = (row["case"], f"{row['lr']:g}", str(row["anchor"]), f"{100 * row['start']:.1f}", epochs)
            rows.append([*cells, f"epoch {kept}" if kept else "the start", f"{100 * row['test']:.1f}"])
        return rows


class FewLabels(FiguresTable):
    """`{few-labels}` lists what models learn from few labels, by what they start from."""

    file = "few_labels.json"

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each model and what it starts from."""
        rows: list[list[Cell]] = [["model", "labels a class", "from", "accuracy", "ahead of scratch"]]
        words = {
            "scratch": "scratch",
            "weights": "weights of CIFAR-10",
            "unlabelled": "unlabelled photographs, 40 epochs",
            "longer": "unlabelled photographs, 120 epochs",
        }
        for model in dict.fromkeys(row["model"] for row in found):
            (labels,) = {row["labels"] for row in found if row["model"] == model}
            reached = {
                start: [row["accuracy"] for row in found if (row["model"], row["start"]) == (model, start)]
                for start in words
            }
            for start in filter(reached.get, words):
                gain = 100 * (mean(reached[start]) - mean(reached["scratch"]))
                ahead = f"{gain:+.1f}" if start != "scratch" else ""
                rows.append([model, str(labels), words[start], spread(reached[start]), ahead])
        return rows


class Learning(FiguresTable):
    """`{learning}` lists what models have learned after equal steps, beside the public package's.

    With the argument `unlabelled`, what features are worth before and after learning without labels.
    """

    file = "learning.jsonl"
    optional_arguments = 1

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each case, in the order of the file, and the mean and median of the gaps."""
        unlabelled = self.arguments == ["unlabelled"]
        figures = ("knn", "knn after", "linear", "linear after") if unlabelled else ("accuracy",)
        rows: list[list[Cell]] = [
            ["", *(f"{package}, {figure}" for package in ("ours", "public") for figure in figures), "ahead"]
        ]
        gaps = []
        for name in dict.fromkeys(row["name"] for row in found if figures[-1] in row):
            shares = {
                (package, figure): [row[figure] for row in found if fits(row, package, name, figure)]
                for package in ("ours", "public")
                for figure in figures
            }
            ours, public = (shares[package, figures[-1]] for package in ("ours", "public"))
            gaps += [100 * (mean(ours) - mean(public))] if ours and public else []
            cells = (spread(some) if some else NOT_MEASURED for some in shares.values())
            rows.append([name, *cells, f"{gaps[-1]:+.1f}" if ours and public else ""])
        rows.append([f"mean of {len(gaps)} gaps", *[""] * 2 * len(figures), f"{mean(gaps):+.1f}"])
        rows.append(["median", *[""] * 2 * len(figures), f"{median(gaps):+.1f}"])
        return rows


def fits(row: Mapping[str, Any], package: str, name: str, figure: str) -> bool:
    """Return whether a row has a figure of a case and a package."""
    return (row["package"], row["name"]) == (package, name) and figure in row


class Loader(FiguresTable):
    """`{loader}` lists the images a second that loaders prepare, and ours beside each."""

    file = "loader.json"

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each library, with a column for each source."""
        rows: list[list[Cell]] = [
            ["images/s (ours by it)", *(f"{row['source']}, {row['size']} pixels" for row in found)]
        ]
        for library in dict.fromkeys(name for row in found for name in row["images_per_second"]):
            cells = []
            for row in found:
                rate, beside = row["images_per_second"].get(library), row["ours_by"].get(library)
                compared = f" ({beside['value']:.2f} ± {beside['spread']:.2f})" if beside else ""
                cells.append(NOT_MEASURED if rate is None else f"{rate:.0f}{compared}")
            rows.append([library, *cells])
        return rows


class Merging(FiguresTable):
    """`{merging}` lists what merging tokens costs trained models, and the operations that are left."""

    file = "merging.json"

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each number of merged patches."""
        rows: list[list[Cell]] = [["model", "merged in each block", "accuracy", "operations"]]
        whole = {row["case"]: row["flops"] for row in found if row["merged"] == 0}
        for row in found:
            part = f"{row['flops'] / whole[row['case']]:.2f}"
            rows.append([row["case"], str(row["merged"]), f"{row['accuracy']:.2%}", part])
        return rows


class Speed(FiguresTable):
    """`{speed}` lists the time of each architecture's models beside the same models in other libraries.

    With the name of a model, its times and peaks of memory in every mode, precision and batch.
    """

    file = "speed.json"
    optional_arguments = 1

    def rows(self, found: Rows) -> list[list[Cell]]:
        """Return a row for each model, or for each cell of one."""
        if self.arguments:
            return one_timed([row for row in found if row["model"] == self.arguments[0]])
        rows: list[list[Cell]] = [["model", "forward: ratio to", "training step: ratio to", "ours, ms"]]
        models: dict[str, Rows] = {}
        for row in found:
            if row["batch"] == 4:
                models.setdefault(row["model"], []).append(row)
        for name, cells in models.items():
            page = page_link(name, f"papers/{paper_page(find_entry(name))}", here=self.env.docname)
            steps = {cell["mode"]: cell for cell in cells}
            ratios = [ratios_of(steps[mode]) if mode in steps else "" for mode in ("forward", "train")]
            rows.append([page, *ratios, ", ".join(f"{cell['ms']['ours']:.0f}" for cell in cells)])
        return rows


def one_timed(found: Rows) -> list[list[Cell]]:
    """Return the table of one model's cells."""
    peers = [library for library in found[0]["ratio"] if library != "ours"] if found else []
    rows: list[list[Cell]] = [["", "batch", "ours, ms", *peers, "peak MiB: ours, " + ", ".join(peers)]]
    for row in found:
        peaks = ", ".join(f"{row['peak_mib'][library]:.0f}" for library in ("ours", *peers))
        mode = "training" if row["mode"] == "train" else row["mode"]
        ratios = (f"{row['ratio'][peer]:.2f}" for peer in peers)
        rows.append([f"{mode} {row['dtype']}", str(row["batch"]), f"{row['ms']['ours']:.1f}", *ratios, peaks])
    return rows


def ratios_of(row: Mapping[str, Any]) -> str:
    """Write the ratios of a cell, each with its library."""
    return ", ".join(f"{peer} {value:.2f}" for peer, value in row["ratio"].items() if peer != "ours")


class ProofFiles(SphinxDirective):
    """`{proof-files}` lists the files of figures: origins of their rows, and the commands that write them."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        rows: list[list[Cell]] = [["file", "rows", *ORIGIN, "command"]]
        for name, command in FILES.items():
            origins = Counter(tuple(row.get(key, NOT_RECORDED) for key in ORIGIN) for row in read_rows(name))
            if not origins:
                rows.append([f"`{name}`", "0", *[NOT_MEASURED] * len(ORIGIN), f"`{command}`"])
            for origin, count in origins.items():
                rows.append([f"`{name}`", str(count), *origin, f"`{command}`"])
        return [table(rows)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("proof", Proof)
    app.add_directive("proof-files", ProofFiles)
    app.add_directive("convergence", Convergence)
    app.add_directive("deployed", Deployed)
    app.add_directive("options", Options)
    app.add_directive("pretraining", Pretraining)
    app.add_directive("going-on", GoingOn)
    app.add_directive("few-labels", FewLabels)
    app.add_directive("learning", Learning)
    app.add_directive("loader", Loader)
    app.add_directive("merging", Merging)
    app.add_directive("speed", Speed)
    return {"parallel_read_safe": True}
