"""Trains in two processes, with each strategy, from the start and from a checkpoint; run by torchrun."""

import json
import sys
from pathlib import Path

import torch

from tests.training.toy import train

STILL = {"dropout": 0.0, "noise": 0.0}


def main() -> None:
    folder = Path(sys.argv[1])
    results = {}
    for strategy in ("ddp", "fsdp"):
        options = {
            "devices": 2,
            "strategy": strategy,
            "gradient_clip_val": 1.0,
            "every_n_steps": 4,
            "keep": 100,
        }
        whole = train(folder / strategy, **options, **STILL)
        resumed = train(
            folder / "x", ckpt_path=folder / "one" / "epoch-0001-batch-000004", **options, **STILL
        )
        noisy = train(folder / f"{strategy}-noisy", **options)
        checkpoint = folder / f"{strategy}-noisy" / "epoch-0001-batch-000004"
        again = train(folder / "x", ckpt_path=checkpoint, **options)
        for name, losses in (
            ("whole", whole),
            ("from one", resumed),
            ("noisy", noisy),
            ("noisy again", again),
        ):
            results[f"{strategy} {name}"] = {"train": losses.train, "val": losses.val}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
