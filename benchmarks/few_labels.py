"""Teach photographs with ten labels a class, from scratch and from weights that ship with the package.

    python benchmarks/few_labels.py docs/measured/few_labels.json --signs FOLDER

FOLDER holds photographs of hands that show digits, a folder a class. A fifth of them, the same for all, is
for testing; of the others each seed draws ten a class, one of which is for validation. The same model
learns them by `vit train` with the recipe that is best from scratch, and by `vit finetune` from its weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from provenance import provenance

from vit_pytorch.cli import main as vit
from vit_pytorch.data import FileImages, open_data

LABELS = 10
# by name: the weights
MODELS = {"cct_2_3x2_32": "cct_2_3x2_32.cifar10", "cct_4_3x2_32": "cct_4_3x2_32.cifar10"}
# by what a model starts from: the command, which has the recipe's own optimizer and rate
COMMANDS = {"scratch": ["train", "--recipe=cifar10"], "weights": ["finetune"]}
OPTIONS = ["--batch_size=32", "--epochs=60", "--min_steps_per_epoch=4", "--select=loss", "--logger=none"]


def link_photographs(signs: Path, folder: Path, seed: int) -> None:
    """Link the photographs that a seed draws, and those for testing, into folders of splits and classes."""
    splits, draws = open_data(str(signs), seed=0), torch.Generator().manual_seed(seed)
    assert isinstance(splits.train, FileImages)
    assert isinstance(splits.test, FileImages)
    for label, name in enumerate(splits.classes):
        known = (splits.train.labels == label).nonzero().flatten()
        drawn = known[torch.randperm(len(known), generator=draws)][:LABELS]
        asked = (splits.test.labels == label).nonzero().flatten()
        for split, images, indices in (("train", splits.train, drawn), ("test", splits.test, asked)):
            into = folder / split / name
            into.mkdir(parents=True)
            for index in indices.tolist():
                path = Path(images.name(index))
                (into / path.name).symlink_to(path.absolute())


def measure(model: str, start: str, seed: int, signs: Path) -> dict[str, Any]:
    """Train once, and return the figures."""
    with TemporaryDirectory() as place:
        photographs, run = Path(place) / "photographs", Path(place) / "run"
        link_photographs(signs, photographs, seed)
        model_options = [f"--model={model}"] if start == "scratch" else [f"--from={MODELS[model]}"]
        given = [f"--data={photographs}", f"--seed={seed}", f"--output={run}", *OPTIONS]
        status = vit([*COMMANDS[start], *model_options, *given])
        if status != 0:
            raise SystemExit(f"vit {COMMANDS[start][0]} ended with status {status}")
        summary = json.loads((run / "summary.json").read_text())
    return {
        "model": model,
        "start": start,
        "labels": LABELS,
        "seed": seed,
        "accuracy": summary["test"]["accuracy"],
        "images": summary["test"]["images"],
        "seconds": summary["training_seconds"],
        **provenance(),
    }


def main() -> None:
    """Run the cases that the file lacks, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--signs", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.file.read_text()) if given.file.is_file() else []
    known = {(row["model"], row["start"], row["seed"]) for row in rows}
    for model in given.models:
        for seed in given.seeds:
            for start in COMMANDS:
                if (model, start, seed) not in known:
                    rows.append(measure(model, start, seed, given.signs))
                    given.file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
