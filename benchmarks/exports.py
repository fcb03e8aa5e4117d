"""Which architectures export to which formats, and how close the files come to the models.

    python benchmarks/exports.py docs/measured/exports.json
    python benchmarks/exports.py docs/measured/exports.json --models "levit*" --formats onnx

The tiny model of every architecture, with random weights of which none is trivially zero or one, is exported
in fp32 with logits as its output, and the file is verified on noise, by its own runtime; a Core ML package is
converted, and verified on a Mac only. Rows that are not measured again stay in the file. The documentation's
table is made from it.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from references import randomise

from vit_pytorch.export.deploy import export_model
from vit_pytorch.export.formats import find_format
from vit_pytorch.export.samples import random_samples
from vit_pytorch.preprocessing import preprocessing_for
from vit_pytorch.registry import entries
from vit_pytorch.registry.entry import ModelEntry

FORMATS = ("onnx", "pt2", "openvino", "torchscript", "executorch", "coreml")


def first_of_each_architecture() -> list[ModelEntry]:
    """Return the first named model of each class; classes of two files may share a name."""
    found: dict[type, ModelEntry] = {}
    for entry in entries().values():
        found.setdefault(entry.architecture, entry)
    return list(found.values())


def measure(entry: ModelEntry, format: str) -> dict[str, Any]:
    """Export one model and return the row of the table; what is refused says why."""
    torch.manual_seed(0)
    model: Any = entry.build(**entry.tiny)
    randomise(model)
    row = {
        "architecture": entry.architecture.__name__,
        "model": entry.name,
        "format": format,
        **provenance(),
    }
    try:
        prep = preprocessing_for(model)
        with tempfile.TemporaryDirectory() as folder:
            report = export_model(
                model,
                Path(folder) / f"model{find_format(format).suffix}",
                format,
                prep=prep,
                samples=random_samples(prep, 9),
                name=entry.name,
                output="logits" if model.num_classes else "features",
                batch_size=4,
            )
    except Exception as error:  # a converter's errors have no common type, and the table names each
        return {**row, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    found = report["verification"]
    if found is None:
        # the images for a check elsewhere are no part of the model
        kept = {name: size for name, size in report["files"].items() if not name.endswith(".check.npz")}
        return {**row, "converted": True, "bytes": sum(kept.values())}
    return {
        **row,
        "difference": found["largest_difference"],
        "relative": found["relative_difference"],
        "bytes": sum(report["files"].values()),
    }


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument("--models", default="*", help="a pattern of names; others keep their rows")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if given.output.exists():
        old = json.loads(given.output.read_text(encoding="utf-8"))
        rows = {(row["model"], row["format"]): row for row in old}
    order = [(entry.name, format) for entry in first_of_each_architecture() for format in FORMATS]
    for entry in first_of_each_architecture():
        for format in given.formats if fnmatchcase(entry.name, given.models) else ():
            row = rows[entry.name, format] = measure(entry, format)
            print(entry.name, format, row.get("error", row.get("difference", "converted")), flush=True)
            kept = [rows[key] for key in order if key in rows]
            given.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
