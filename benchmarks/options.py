"""What options of the plain ViT are worth at a small size: accuracy, at a higher resolution, too, and time.

    python benchmarks/options.py idx:/usr/share/datasets/fashion-mnist --json docs/measured/options.json

Each option changes one thing in a ViT of width 64 that is trained on 5000 images of 28 x 28 pixels and asked
for 2000, three seeds. Then it is asked for the same images enlarged to 40 x 40: a model of that size takes
its weights, and positions are interpolated, or go on as they are. Time is that of the trainings, beside the
plain ViT's. Then the plain ViT is trained by other optimizers and learning rates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from time import process_time
from typing import Any

import torch
import torch.nn.functional as F
from provenance import provenance
from small_data import Data, accuracy, learn_labels, read_data

from vit_pytorch import ViT, load_pretrained

SIZE, LARGE, SEEDS = 28, 40, 3
VIT: dict[str, Any] = {
    "patch_size": 4,
    "num_classes": 10,
    "dim": 64,
    "depth": 4,
    "heads": 4,
    "dim_head": 16,
    "mlp_dim": 128,
    "channels": 1,
    "pool": "mean",
}
OPTIONS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "class token": {"pool": "cls"},
    "4 registers": {"num_registers": 4},
    "value residual": {"value_residual": True},
    "hyper-connections, 4 streams": {"hyper_connections": 4},
    "query and key norm": {"qk_norm": True},
    "no positions": {"positions": "none"},
    "sin-cos positions": {"positions": "sincos"},
    "relative positions": {"positions": "relative"},
    "rotary positions": {"positions": "rope"},
    "learned and rotary": {"positions": "learned+rope"},
    "rotary, mixed": {"positions": "rope_mixed"},
    "patch dropout 0.25": {"patch_dropout": 0.25},
    "patch dropout 0.5": {"patch_dropout": 0.5},
}
# of the plain ViT: the optimizer and its learning rate
LEARNING: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-3}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    f"{title}, {lr:g}": {"optimizer": name, "lr": lr}
    for title, name in (("AdamW", "adamw"), ("Muon", "muon"))
    for lr in (1e-3, 3e-3, 1e-2, 3e-2)
}


def measure(
    options: Mapping[str, Any], learning: Mapping[str, Any], data: Data, larger: Data, seed: int, epochs: int
) -> dict[str, float]:
    """Train one model; give its accuracy at both sizes and the seconds of the training."""
    torch.manual_seed(seed)
    model = ViT(**{"image_size": data.size, **VIT, **options})
    start = process_time()
    learn_labels(model, data, epochs=epochs, seed=seed, **learning)
    seconds = process_time() - start
    large = ViT(**{"image_size": larger.size, **VIT, **options})
    load_pretrained(large, model.state_dict())
    return {
        "accuracy": accuracy(model, data.test_images, data.test_labels),
        "larger": accuracy(large, larger.test_images, larger.test_labels),
        "seconds": seconds,
    }


def main() -> None:
    """Measure every option, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="idx:FOLDER of Fashion-MNIST, or digits")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--json", type=Path, help="where all figures are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = read_data(given.data, SIZE, train=5000, test=2000)
    pictures = (
        F.interpolate(x, (LARGE, LARGE), mode="bilinear") for x in (data.images[:1], data.test_images)
    )
    images, test_images = pictures
    larger = data._replace(images=images, test_images=test_images)
    rows = {name: (options, LEARNING) for name, options in OPTIONS.items()}
    rows |= {name: ({}, learning) for name, learning in OPTIMIZERS.items() if learning != LEARNING}
    found: dict[str, Any] = {name: {"option": name, "epochs": given.epochs, "runs": []} for name in rows}
    for seed in range(SEEDS):
        for name, (options, learning) in rows.items():
            run = measure(options, learning, data, larger, seed, given.epochs)
            found[name]["runs"].append(run)
            found[name] |= provenance()
            print(json.dumps({"option": name, "seed": seed, **run}), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps([*found.values()], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
