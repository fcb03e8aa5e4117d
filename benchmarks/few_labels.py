"""Teach photographs with ten labels a class, from scratch and from what was learned before.

    python benchmarks/few_labels.py docs/measured/few_labels.json --signs FOLDER

FOLDER holds photographs of hands that show digits, a folder a class. A fifth of them, the same for all, is
for testing; of the others each seed draws ten a class, one of which is for validation. The same model
learns them by `vit train` with the recipe that is best from scratch, and by `vit finetune`: from its weights
that ship with the package, or from what `vit pretrain` has learned of all photographs but those for testing,
whose labels it does not see, in 40 epochs or in 120.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from provenance import provenance
from torch import Tensor

from vit_pytorch.cli import main as vit
from vit_pytorch.data import FileImages, ImageDataset, open_data

LABELS = 10
# by name: the weights
MODELS = {"cct_2_3x2_32": "cct_2_3x2_32.cifar10", "cct_4_3x2_32": "cct_4_3x2_32.cifar10"}
# by what a model starts from: the command, which has the recipe's own optimizer and rate
COMMANDS = {
    "scratch": ["train", "--recipe=cifar10"],
    "weights": ["finetune"],
    "unlabelled": ["finetune"],
    "longer": ["finetune"],
}
# by what a model starts from: passes over the unlabelled photographs
EPOCHS = {"unlabelled": 40, "longer": 120}
PRETRAINING = [
    *("pretrain", "--method=lejepa", "--recipe=light", "--model.attn_dropout=0", "--model.drop_path=0"),
    *("--batch_size=64", "--lr=0.002", "--data.test_fraction=0", "--precision=bf16-mixed"),
    *("--method.embedding_dim=32", "--method.hidden_dim=256", "--method.num_slices=128"),
    *("--method.global_lower_crop_scale=0.5", "--method.local_lower_crop_scale=0.3"),
    *("--method.local_upper_crop_scale=0.6", "--method.flip=0", "--method.colour=0.8", "--method.blur=0.1"),
    *("--method.solarize=0", "--workers=0", "--logger=none"),
]
OPTIONS = ["--batch_size=32", "--epochs=60", "--min_steps_per_epoch=4", "--select=loss", "--logger=none"]


def link_photographs(signs: Path, folder: Path, seed: int) -> None:
    """Link the photographs that a seed draws, and those for testing, into folders of splits and classes."""
    splits, draws = open_data(str(signs), seed=0), torch.Generator().manual_seed(seed)
    for label, name in enumerate(splits.classes):
        known = (file_images(splits.train).labels == label).nonzero().flatten()
        drawn = known[torch.randperm(len(known), generator=draws)][:LABELS]
        asked = (file_images(splits.test).labels == label).nonzero().flatten()
        link(file_images(splits.train), drawn, folder / "train" / name)
        link(file_images(splits.test), asked, folder / "test" / name)


def link_unlabelled(signs: Path, folder: Path) -> None:
    """Link all photographs but those for testing into one folder."""
    splits = open_data(str(signs), seed=0)
    for images in map(file_images, (splits.train, splits.val)):
        link(images, torch.arange(len(images)), folder)


def link(images: FileImages, indices: Tensor, folder: Path) -> None:
    """Link some photographs into a folder, which may be there."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices.tolist():
        path = Path(images.name(index))
        (folder / path.name).symlink_to(path.absolute())


def file_images(images: ImageDataset | None) -> FileImages:
    """Return a split of a folder."""
    assert isinstance(images, FileImages)
    return images


def measure(model: str, start: str, seed: int, signs: Path) -> dict[str, Any]:
    """Train once, and return the figures."""
    with TemporaryDirectory() as place:
        photographs, run = Path(place) / "photographs", Path(place) / "run"
        link_photographs(signs, photographs, seed)
        seconds, weights = 0.0, MODELS[model]
        if start in EPOCHS:
            unlabelled, weights = Path(place) / "unlabelled", str(Path(place) / "pretrained")
            link_unlabelled(signs, unlabelled)
            given = [f"--model={model}", f"--data={unlabelled}", f"--seed={seed}", f"--output={weights}"]
            call([*PRETRAINING, f"--epochs={EPOCHS[start]}", *given])
            seconds = json.loads((Path(weights) / "summary.json").read_text())["training_seconds"]
        model_options = [f"--model={model}"] if start == "scratch" else [f"--from={weights}"]
        given = [f"--data={photographs}", f"--seed={seed}", f"--output={run}", *OPTIONS]
        call([*COMMANDS[start], *model_options, *given])
        summary = json.loads((run / "summary.json").read_text())
    return {
        "model": model,
        "start": start,
        "labels": LABELS,
        "seed": seed,
        "accuracy": summary["test"]["accuracy"],
        "images": summary["test"]["images"],
        "seconds": seconds + summary["training_seconds"],
        **provenance(),
    }


def call(arguments: list[str]) -> None:
    """Run a command of `vit`."""
    if (status := vit(arguments)) != 0:
        raise SystemExit(f"vit {arguments[0]} ended with status {status}")


def main() -> None:
    """Run the cases that the file lacks, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--signs", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--starts", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.file.read_text()) if given.file.is_file() else []
    known = {(row["model"], row["start"], row["seed"]) for row in rows}
    for model in given.models:
        for seed in given.seeds:
            for start in given.starts:
                if (model, start, seed) not in known:
                    rows.append(measure(model, start, seed, given.signs))
                    given.file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
