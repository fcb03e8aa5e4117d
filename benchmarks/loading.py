"""How close loaded models come to the programs that their checkpoints are of.

    python benchmarks/loading.py docs/measured/loading.json

Each reference is small, with random weights of which none is trivially zero or one; where a program is not
installed, what it computed is in `tests/golden/`. The documentation's table is made from the file.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from loading_case import Case
from loading_cases import cases
from references import images, randomise

from vit_pytorch.create import architectures, create_model
from vit_pytorch.model import VisionModel
from vit_pytorch.pretrained import load_pretrained, to_format
from vit_pytorch.pretrained.tables import TABLES
from vit_pytorch.registry import entries

# Logits of references must differ from image to image, or equality says nothing.
SPREAD = 0.05


def measure(case: Case) -> dict[str, Any]:
    """Load a checkpoint and compare.

    Raises:
        ValueError: where another format is recognised, or the reference's outputs are trivial.
    """
    torch.manual_seed(1)
    model = case.build().eval()
    report = load_pretrained(model, case.checkpoint)
    spread = case.outputs.std().item()
    if report.format != case.format or spread < SPREAD:
        raise ValueError(f"{case.reference}: format {report.format}, outputs of spread {spread:.3g}")
    found = case.call(model, case.inputs)
    return {
        "architecture": type(model).__name__,
        "table": table_of(model),
        "format": case.format,
        "reference": case.reference,
        "difference": (found - case.outputs).abs().max().item(),
        "written": goes_back(model, case),
    }


def goes_back(model: VisionModel, case: Case) -> bool:
    """Tell whether the format can be written, too, so that reading that gives the same model."""
    try:
        written = to_format(model, case.format)
    except ValueError:
        return False
    again = case.build().eval()
    load_pretrained(again, written)
    return (case.call(again, case.inputs) - case.call(model, case.inputs)).abs().max().item() < 1e-6


def table_of(model: VisionModel) -> str:
    """Name the table of formats that a model's checkpoints are looked up in."""
    return next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in TABLES)


def own(table: str) -> dict[str, Any]:
    """Save a model of ours and load it again."""
    tiny = {e.architecture.__name__: {**e.config, **e.tiny} for e in reversed(entries().values())}
    arguments = tiny["ViT"] if table == "DistillableViT" else tiny[table]
    torch.manual_seed(0)
    model = architectures()[table](**arguments)
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = create_model(folder)
    inputs = images(*model.image_size)
    return {
        "architecture": table,
        "table": table,
        "format": "vit_pytorch",
        "reference": "a folder that `save_pretrained` wrote",
        "difference": (again(inputs) - model(inputs)).abs().max().item(),
        "written": True,
    }


@torch.no_grad()
def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    output = parser.parse_args().output
    logging.disable(logging.WARNING)
    rows = [measure(case) for case in cases()] + [own(table) for table in TABLES]
    for row in rows:
        print(f"{row['architecture']:16} {row['format']:30} {row['difference']:.1e}  {row['reference']}")
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
