"""Directives for tables: named models, from the registry; what loads and exports, from measurements."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from page_nodes import Cell, inline, link, page_link, table
from sphinx.util.docutils import SphinxDirective

from vit_pytorch.pretrained.tables import formats_of, tables
from vit_pytorch.registry import entries, find_entry
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.trained import list_trained, read_card, shown_accuracy

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MEASURED = Path(__file__).parent / "measured" / "loading.json"
EXPORTED = Path(__file__).parent / "measured" / "exports.json"
COUNTED = Path(__file__).parent / "measured" / "zoo.json"
LICENSED = Path(__file__).parent / "measured" / "licences.json"
PAPERS = Path(__file__).parent / "papers"
HUB = "https://huggingface.co"
NOT_YET = "not measured yet"
# modules that share the page of another one
SHARED_PAGES = {"simple_vit_3d": "vit_3d", "na_vit_nested_tensor": "na_vit"}
ZOO = (
    "name",
    "architecture",
    "family",
    "year",
    "parameters",
    "GMACs",
    "input",
    "weights",
    "licence",
    "apart",
    "other tags",
)
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
        rows: list[list[Cell]] = [["name", "parameters", *columns, "published weights"]]
        for entry in found:
            sizes = [
                str(next((entry.config[key] for key in names if key in entry.config), ""))
                for names in columns.values()
            ]
            rows.append([f"`{entry.name}`", f"{entry.parameters:,}", *sizes, weights_link(entry)])
        return [table(rows)]


class LoadedFormats(SphinxDirective):
    """`.. loaded-formats::` lists what loads, and the largest difference that was measured."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        self.env.note_dependency(str(MEASURED))
        rows = [["model", "format", "held against", "direction", "largest difference"]]
        found = json.loads(MEASURED.read_text())
        for entry in one_own(found):
            rows.append(
                [
                    entry["architecture"],
                    entry["format"],
                    entry["reference"],
                    "both" if entry["written"] else "read",
                    f"{entry['difference']:.1e}" if entry["difference"] else "0",
                ]
            )
        for name in tables_without(found):
            rows += [[name, layout.name, NOT_YET, "", ""] for layout in formats_of(name)]
        return [table(rows)]


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
            rows.append([architecture, f"`{model}`", *(exported(row) for row in here)])
        return [table(rows)]


class ModelZoo(SphinxDirective):
    """`{model-zoo}` lists every named model, or those that it names, one a line.

    `_static/zoo.js` sorts and filters the table of all.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        for file in (MEASURED, COUNTED, LICENSED):
            self.env.note_dependency(str(file))
        counted = {row["name"]: row for row in json.loads(COUNTED.read_text())}
        licensed = {row["name"]: row for row in json.loads(LICENSED.read_text())["models"]}
        loaded = json.loads(MEASURED.read_text())
        apart = {
            **{name: f"{value:.1e}" for name, value in largest_differences(loaded).items()},
            **dict.fromkeys(tables_without(loaded), NOT_YET),
        }
        rows: list[list[Cell]] = [[*ZOO]]
        for entry in map(find_entry, self.content or entries()):
            found = counted.get(entry.name)
            architecture = entry.architecture.__name__
            family, year = family_and_year(entry)
            rows.append(
                [
                    f"`{entry.name}`",
                    page_link(architecture, f"papers/{paper_page(entry)}", here=self.env.docname),
                    family,
                    year,
                    f"{entry.parameters:,}",
                    NOT_YET if found is None else f"{found['macs'] / 1e9:.2f}",
                    "" if found is None else " × ".join(map(str, found["input"])),
                    weights_link(entry, short=True),
                    licence_link(entry, licensed),
                    apart.get(architecture, ""),
                    other_tags(entry, licensed),
                ]
            )
        return [table(rows, classes=["models"] if self.content else ["models", "zoo"])]


def family_and_year(entry: ModelEntry) -> tuple[str, str]:
    """Read the family of an architecture, and the year of its paper, from its module."""
    text = " ".join((sys.modules[entry.architecture.__module__].__doc__ or "").split())
    family, year = re.search(r"Family: ([\w-]+)", text), re.search(r"\b(\d{4}), arXiv:", text)
    if family is None or year is None:
        raise ValueError(f"{entry.architecture.__module__} names no family or no year")
    return family[1], year[1]


def paper_page(entry: ModelEntry) -> str:
    """Return the page of an architecture."""
    module = entry.architecture.__module__.rpartition(".")[2]
    page = SHARED_PAGES.get(module, module)
    if not (PAPERS / f"{page}.md").is_file():
        raise ValueError(f"{entry.name} has no page {PAPERS / page}.md")
    return page


def weights_link(entry: ModelEntry, *, short: bool = False) -> Cell:
    """Return a link to the published weights of a model, nothing where none are known.

    Args:
        short: show the tag of the release, where it has one.
    """
    if entry.hub_id is None:
        return ""
    return link(
        entry.hub_id.partition(".")[2] or entry.hub_id if short else entry.hub_id, f"{HUB}/{entry.hub_id}"
    )


def licence_link(entry: ModelEntry, licensed: Mapping[str, Any]) -> Cell:
    """Return the licence of a model's published weights, with a link to the page that tells its terms."""
    if entry.hub_id is None:
        return ""
    row = licensed.get(entry.name)
    if row is None or row["hub_id"] != entry.hub_id:
        return NOT_YET
    return link(row["license"] or "see its page", f"{HUB}/{entry.hub_id}")


def other_tags(entry: ModelEntry, licensed: Mapping[str, Any]) -> str:
    """Return the tags of further weights that timm publishes under a model's name."""
    tags = licensed.get(entry.name, {}).get("tags", [])
    return ", ".join(tag for tag in tags if entry.repository(tag) != entry.hub_id)


class TrainedModels(SphinxDirective):
    """`.. trained-models::` lists the trained models that ship with the package, then their cards."""

    def run(self) -> list[nodes.Node]:
        """Return the table, and a part for each card."""
        cards = [read_card(name) for name in list_trained()]
        rows: list[list[Cell]] = [["name", "parameters", "MB", "test accuracy", "data", "terms of the data"]]
        rows += [
            [
                f"`{card['name']}`",
                f"{card['parameters']:,}",
                f"{card['bytes'] / 1e6:.1f}",
                f"{shown_accuracy(card)} of {card['images']['test']:,}",
                card["data"],
                card["terms"],
            ]
            for card in cards
        ]
        made: list[nodes.Node] = [table(rows)]
        for card in cards:
            facts = nodes.bullet_list(
                "",
                *(nodes.list_item("", nodes.paragraph("", "", *inline(fact))) for fact in card_facts(card)),
            )
            made += [
                nodes.rubric("", card["name"]),
                nodes.literal_block(card["command"], card["command"], language="sh"),
                facts,
            ]
        return made


def card_facts(card: Mapping[str, Any]) -> list[str]:
    """Return what the card of a trained model says, a sentence or two each."""
    size = " x ".join(map(str, card["input_size"]))
    images = ", ".join(f"{count:,} in {split}" for split, count in card["images"].items())
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    return [
        (
            f"Data: {card['data']}; images: {images}; split by seed {card['split_seed']} "
            "where the data has no splits."
        ),
        f"Terms: {card['terms_judged']}",
        f"Input: {size} (channels, height, width); {card['architecture']}.",
        *(classifier_facts(card) if card["classes"] else backbone_facts(card)),
        (
            f"Training: {card['epochs']} epochs in {card['training_seconds'] / 60:.1f} minutes on "
            f"{card['threads']} threads, precision {card['precision']}, seed {card['seed']}, commit "
            f"{card['commit']}; {versions}."
        ),
        *seed_facts(card),
        f"Validation accuracy{'' if card['classes'] else ' of the nearest neighbours'} by epoch: "
        + " ".join(f"{100 * value:.1f}" for value in card["validation"])
        + ".",
        f"Limits: {' '.join(card['limits'])}",
    ]


def classifier_facts(card: Mapping[str, Any]) -> list[str]:
    """Return what the card of a classifier says of its accuracy and calibration."""
    classes = ", ".join(f"{name} {value:.1%}" for name, value in card["class_accuracy"].items())
    return [
        (
            f"Accuracy on the test images: {card['accuracy']:.2%} with weights in half precision, "
            f"{card['accuracy_single_precision']:.2%} in single; loss {card['loss']:.3f}. "
            f"By class: {classes}."
        ),
        (
            f"Calibration error: {card['calibration_error']:.3f}; {card['calibrated_error']:.3f} with "
            f"`--calibrated` (temperature {card['temperature']:.2f}, chosen on validation images)."
        ),
    ]


def backbone_facts(card: Mapping[str, Any]) -> list[str]:
    """Return what the card of a model that learned without labels says of its features."""
    before = card["untrained"]
    return [
        (
            f"Learned without labels, by {card['method']['name']}. The 20 nearest training images classify "
            f"{card['knn_accuracy']:.2%} of the test images, a linear classifier of the features "
            f"{card['linear_accuracy']:.2%}; with random weights {before['knn']:.2%} and "
            f"{before['linear']:.2%}."
        ),
        "It has no classifier: `vit finetune --from` gives it one, `vit embed` writes its features.",
    ]


def seed_facts(card: Mapping[str, Any]) -> list[str]:
    """Return a sentence on runs with other seeds, if there were any; each in single precision."""
    others = card.get("other_seeds", [])
    if not others:
        return []
    found = {
        card["seed"]: card["accuracy_single_precision"],
        **{row["seed"]: row["accuracy"] for row in others},
    }
    shown = ", ".join(f"seed {seed} {accuracy:.2%}" for seed, accuracy in found.items())
    mean = sum(found.values()) / len(found)
    return [f"Test accuracy over {len(found)} seeds: {mean:.2%} in the mean ({shown})."]


def largest_differences(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the largest difference of each architecture from references of others."""
    largest: dict[str, float] = {}
    for row in found:
        if row["format"] != "vit_pytorch":
            name = row["architecture"]
            largest[name] = max(largest.get(name, 0.0), row["difference"])
    return largest


def tables_without(found: list[dict[str, Any]]) -> list[str]:
    """Return the architectures of named models whose table of weights has no row in a measurement yet."""
    measured = {tables()[row["table"]] for row in found}
    named = {entry.architecture.__name__ for entry in entries().values()}
    return [name for name, file in tables().items() if name in named and file not in measured]


def add_script(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.Node | None
) -> None:
    """Load the table's script on pages that have one."""
    if tree is not None and any("zoo" in found["classes"] for found in tree.findall(nodes.table)):
        app.add_js_file("zoo.js", loading_method="defer")


def exported(row: dict[str, Any]) -> str:
    """Write a cell: the difference, that a file was converted for another machine, or why one was refused."""
    if not row:
        return "not measured"
    if "converted" in row:
        return "converted"
    return row["error"].partition(": ")[2] if "error" in row else f"{row['difference']:.0e}"


def one_own(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make one entry of all models' own format, the last."""
    own = [entry for entry in found if entry["format"] == "vit_pytorch"]
    worst = max(own, key=lambda entry: entry["difference"])
    return [entry for entry in found if entry not in own] + [{**worst, "architecture": "all models"}]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("named-models", NamedModels)
    app.add_directive("loaded-formats", LoadedFormats)
    app.add_directive("exported-formats", ExportedFormats)
    app.add_directive("model-zoo", ModelZoo)
    app.add_directive("trained-models", TrainedModels)
    app.connect("html-page-context", add_script)
    return {"parallel_read_safe": True}
