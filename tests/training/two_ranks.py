"""Trains in two processes, with each strategy, from the start and from a checkpoint; run by torchrun."""

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tests.training.toy import At, ToyImages, train, vit_task
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.losses import LossConfig, make_loss
from vit_pytorch.training.problems import MultiLabel
from vit_pytorch.training.task import Batch, Supervised

STILL = {"dropout": 0.0, "noise": 0.0}
LABELS = MultiLabel(("a", "b", "c"))


def outputs_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, generator=generator), (torch.rand(7, 3, generator=generator) < 0.4).float()


def figures_of_labels() -> dict[str, float]:
    """Validate on labels of which the first process has four rows, the second three."""
    rows = slice(4) if torch.distributed.get_rank() == 0 else slice(4, 7)
    outputs, targets = (part[rows] for part in outputs_and_labels())
    task = Supervised(nn.Identity(), LABELS, criterion=make_loss(LossConfig(), "multilabel")).eval()
    task.measure(Batch(outputs[:2], targets[:2], 0, 0))
    task.measure(Batch(outputs[2:], targets[2:], 0, 1))
    return task.finish_validation()


class Shards(Callback):
    """Notes which part of the weights this process holds."""

    share: float

    def on_train_start(self, loop: Loop) -> None:
        parameters = list(loop.task.parameters())
        here = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
        self.share = here / sum(p.numel() for p in parameters)


def errors_on_a_full_disk(folder: Path, **options: Any) -> list[str]:
    """Train until the second process cannot write its part; return what each process says."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        if torch.distributed.get_rank() == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))

    said = ["", ""]
    try:
        train(folder, At(2, 0, fill), sharded=True, **options)
    except OSError as error:
        torch.distributed.all_gather_object(said, str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return said


def save_and_wait(save: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Write a part, and go on when the first process has long done so."""
    written = save(*args, **kwargs)
    time.sleep(0.2)
    return written


def main() -> None:
    folder = Path(sys.argv[1])
    torch.compile = partial(torch.compile, backend="aot_eager")
    results: dict[str, dict[str, Any]] = {}
    for strategy in ("ddp", "fsdp"):
        options = {
            "devices": 2,
            "strategy": strategy,
            "clip": 1.0,
            "every_n_steps": 4,
            "keep": 100,
        }
        shards = Shards()
        whole = train(folder / strategy, shards, **options, **STILL)
        resumed = train(folder / "x", resume=folder / "one" / "epoch-0001-batch-000004", **options, **STILL)
        noisy = train(folder / f"{strategy}-noisy", **options)
        checkpoint = folder / f"{strategy}-noisy" / "epoch-0001-batch-000004"
        again = train(folder / "x", resume=checkpoint, **options)
        for name, losses in (
            ("whole", whole),
            ("from one", resumed),
            ("noisy", noisy),
            ("noisy again", again),
        ):
            results[f"{strategy} {name}"] = {"train": losses.train, "val": losses.val}
        averaged = train(folder / "x", ema=0.9, **options, **STILL)
        results[f"{strategy} averaged"] = {"train": averaged.train, "val": averaged.val}
        results[f"{strategy} sharded"] = {"share": shards.share}
        for recomputed in (False, True):
            task, engine = vit_task(), {"devices": 2, "strategy": strategy, "clip": 1.0}
            losses = train(
                folder / "x",
                task=task,
                data=ToyImages(),
                epochs=2,
                activation_checkpointing=recomputed,
                **engine,
            )
            results[f"{strategy} {'recomputed' if recomputed else 'kept'}"] = losses.train
        task, compiled = vit_task(noise=0.0), {"compiled": True, "activation_checkpointing": True}
        losses = train(folder / "x", task=task, data=ToyImages(0.0), epochs=1, **compiled, **engine)
        results[f"{strategy} compiled"] = losses.train
        task = vit_task(noise=0.0, optimizer="muon")
        losses = train(folder / "x", task=task, data=ToyImages(0.0), epochs=1, **engine)
        results[f"{strategy} muon"] = losses.train
    if torch.distributed.get_rank() == 1:
        dcp.save = partial(save_and_wait, dcp.save)
    averaged_too: dict[str, Any] = {**options, "ema": 0.9}
    place = folder / "parts" / "epoch-0001-batch-000004"
    runs = {
        "whole checkpoints": train(folder / "wholes", **averaged_too),
        "sharded checkpoints": train(folder / "parts", sharded=True, **averaged_too),
        "from sharded": train(folder / "x", resume=place, sharded=True, **averaged_too),
    }
    results |= {name: {"train": losses.train, "val": losses.val} for name, losses in runs.items()}
    results["labels"] = figures_of_labels()
    results["full disk"] = {"errors": errors_on_a_full_disk(folder / "full", **averaged_too)}
    if torch.distributed.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
