"""One self-contained page: template, what there is to see, and the maps as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from math import ceil
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor

from vit_pytorch.analysis.report.fit import Fitted, PackedLayer, RoomError, coarsest_size, fit_layers
from vit_pytorch.analysis.report.gather import Explanation
from vit_pytorch.analysis.report.pack import quantise
from vit_pytorch.analysis.report.pictures import as_url
from vit_pytorch.analysis.report.places import Places
from vit_pytorch.storage import write_file

SCRIPTS = ("data.js", "draw.js", "page.js", "controls.js")
# Characters that the page takes beside images, and that a layer takes beside its maps.
RESERVE = 60_000
LAYER = 600


@dataclass(frozen=True)
class Subject:
    """Which model a report is about.

    Args:
        name: of the model or run.
        facts: what else there is to say of it, in a few words each.
        classes: names of the classes.
        warning: what a reader must know first; empty for nothing.
        describe: writes a score that is no probability; None where scores are probabilities.
    """

    name: str
    facts: Sequence[str]
    classes: Sequence[str]
    warning: str = ""
    describe: Callable[[float], str] | None = None


def write_report(
    path: Path, subject: Subject, explanations: Iterable[Explanation], *, count: int, megabytes: float = 14.0
) -> int:
    """Write the page.

    Args:
        path: the HTML file.
        subject: the model.
        explanations: one for each image; each is needed only until the next one is asked for.
        count: number of images.
        megabytes: size of the page at most, shared evenly by the images; maps are stored as finely as fits.

    Returns:
        The page's size in bytes.

    Raises:
        ValueError: where the images do not fit in that size, whatever is left out.
        OSError: where the file cannot be written.
    """
    images: list[dict[str, Any]] = []
    chunks: list[str] = []
    fits: list[Fitted] = []
    for index, shown in enumerate(explanations):
        image = _describe(shown, subject)
        beside = len(json.dumps(image)) + LAYER * len(shown.layers)
        room = int((megabytes * 1e6 - RESERVE) / count) - beside
        try:
            rollout = [] if shown.rollout is None else fit_layers([shown.rollout], room // 4).layers
            fits.append(fit_layers(shown.layers, room - sum(len(layer.packed.text) for layer in rollout)))
        except RoomError as error:
            # a quarter is for rollout, where there is one
            parts = [(shown.layers, 0.75 if shown.rollout else 1.0)]
            parts += [([shown.rollout], 0.25)] if shown.rollout else []
            least = beside + ceil(max(coarsest_size(layers) / share for layers, share in parts))
            enough = ceil((RESERVE + count * least) / 1e4) / 100
            fewer = int((megabytes * 1e6 - RESERVE) / least)
            some = f", {fewer} of them" if fewer > 0 else ""
            raise ValueError(
                f"{count} images take a page of about {enough:g} MB at the coarsest, got "
                f"megabytes={megabytes:g}: allow a larger page, or take fewer images{some}"
            ) from error
        layers = [*fits[-1].layers, *rollout]
        described = []
        for number, layer in enumerate(layers):
            name = f"i{index}-{number}"
            described.append(_describe_layer(layer, name))
            chunks.append(f'<script type="text/plain" id="{name}">{layer.packed.text}</script>')
        image["rollout"] = described.pop() if rollout else None
        image["layers"] = described
        images.append(image)
    text = _fill(subject, images, chunks, _precision(fits))
    write_file(path, text)
    return path.stat().st_size


def _describe(shown: Explanation, subject: Subject) -> dict[str, Any]:
    """Say of an image what the page reads at once."""
    rows, columns = shown.relevance.maps.shape[1:]
    colours = None
    if shown.colours is not None:
        colours = {
            "places": _describe_places(Places(0, *shown.colours.shape[:2])),
            "bytes": _text((shown.colours * 255).round().byte()),
        }
    return {
        "name": shown.name,
        "picture": as_url(shown.picture),
        "height": shown.picture.shape[1],
        "width": shown.picture.shape[2],
        "prefix": shown.prefix,
        "pooled": shown.pooled,
        "notes": shown.notes,
        "top": [
            {"name": subject.classes[index], "probability": round(score, 5)}
            if subject.describe is None
            else {"name": subject.classes[index], "probability": 0, "text": subject.describe(score)}
            for index, score in shown.top
        ],
        "relevance": {
            "method": shown.relevance.method,
            "places": _describe_places(Places(0, rows, columns)),
            "maps": [
                base64.b64encode(quantise(each.float().numpy(force=True)).tobytes()).decode()
                for each in shown.relevance.maps
            ],
        },
        "distances": [
            None if found is None else [round(value, 2) for value in found] for found in shown.distances
        ],
        "uniform": [None if value is None else round(value, 2) for value in shown.uniform],
        "colours": colours,
    }


def _describe_layer(layer: PackedLayer, name: str) -> dict[str, Any]:
    queries, keys = layer.block
    return {
        "name": layer.layer.name,
        "heads": layer.packed.shape[0],
        "queries": _describe_places(layer.layer.queries, queries),
        "keys": _describe_places(layer.layer.keys, keys),
        "differences": layer.packed.differences,
        "chunk": name,
    }


def _describe_places(places: Places, block: int = 1) -> dict[str, int | float]:
    """Say how many cells there are, and how many would cover the image exactly."""
    return {
        "prefix": places.prefix,
        "rows": -(-places.rows // block),
        "columns": -(-places.columns // block),
        "high": places.rows / block,
        "wide": places.columns / block,
    }


def _text(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy(force=True).tobytes()).decode()


def _precision(fits: Sequence[Fitted]) -> str:
    """Say how finely maps are stored."""
    steps = sorted({fit.steps for fit in fits if fit.layers})
    if not steps:
        return ""
    text = (
        f"Weights of attention are stored in {' or '.join(map(str, steps))} steps on a scale of square roots "
        "up to the largest weight of each token."
    )
    block = max(fit.block for fit in fits)
    if block > 1:
        text += f" To keep the page small, up to {block} × {block} patches are merged to one cell."
    return text


def _fill(subject: Subject, images: list[dict[str, Any]], chunks: Sequence[str], precision: str) -> str:
    template = files("vit_pytorch.analysis.report") / "template"

    def read(name: str) -> str:
        return (template / name).read_text(encoding="utf-8")

    style = read("style.css")
    script = '(() => {\n"use strict";\n' + "\n".join(map(read, SCRIPTS)) + "})();\n"
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    warning = f'<p class="warning">{escape(subject.warning)}</p>' if subject.warning else ""
    return Template(read("page.html")).substitute(
        policy=policy,
        title=escape(f"{subject.name}: what it looks at"),
        facts=escape(" · ".join(subject.facts)),
        style=style,
        warning=warning,
        precision=escape(precision),
        chunks="\n".join(chunks),
        # `<` would let a name end the element
        report=json.dumps({"images": images}, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
    )


def _hash(text: str) -> str:
    """What a content security policy calls a script or style that it allows."""
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"
