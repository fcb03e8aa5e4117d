"""A small model and data set, and a program that trains them; tests run it in child processes."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests import forked
from vit_pytorch.create import create_model
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.engine import make_fabric, sum_over_processes
from vit_pytorch.training.keeper import Checkpoints
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.resume import fit
from vit_pytorch.training.task import Batch, Classifier, Data, Task


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.num_classes = 4
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = images + self.cls_token[0]
        for block in self.blocks:
            x = x + self.dropout(block(x).relu())
        return self.head(self.norm(x))

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^cls_token", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}


class ShuffledLoader:
    """Order from (seed, epoch), noise from the global generator, resumable, cut between ranks."""

    def __init__(
        self, data: TensorDataset, batch_size: int, noise: float, rank: int = 0, world: int = 1
    ) -> None:
        self.data, self.batch_size, self.noise, self.rank, self.world = data, batch_size, noise, rank, world
        self.epoch = self.done = 0
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        # a plain DataLoader draws a seed for its workers here
        torch.empty((), dtype=torch.int64).random_()
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        if self.done == len(self):
            self.done = 0
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(1000 + self.epoch))
        while self.done < len(self):
            whole = order[self.done * self.batch_size : (self.done + 1) * self.batch_size]
            images, labels = self.data[whole[self.rank :: self.world]]
            if self.noise:
                images = images + self.noise * torch.randn_like(images)
            self.done += 1
            yield images, labels

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.done = state["epoch"], state["done"]


class ToyData:
    def __init__(self, noise: float = 0.1, edit: Callable[[Tensor, Tensor], None] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(48, 8, generator=generator)
        labels = images[:, :4].argmax(1)
        if edit is not None:
            edit(images, labels)
        self.train_set = TensorDataset(images, labels)
        self.noise = noise
        self.rank, self.world_size = 0, 1

    def train_dataloader(self) -> ShuffledLoader:
        return ShuffledLoader(self.train_set, 8, self.noise, self.rank, self.world_size)

    def val_dataloader(self) -> DataLoader[Any]:
        held_out = TensorDataset(*(tensor[:16] for tensor in self.train_set.tensors))
        return DataLoader(held_out, batch_size=8)


class Losses(Callback):
    """Losses of the training and of the validations by (epoch, batch)."""

    def __init__(self) -> None:
        self.train: dict[str, float] = {}
        self.val: dict[str, float] = {}

    def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
        loss = sum_over_processes(loop.fabric, metrics["train/loss"]) / loop.fabric.world_size
        self.train[f"{batch.epoch}.{batch.batch_idx}"] = float(loss)

    def on_validation_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        self.val[f"{loop.epoch}.{loop.batch - 1}"] = metrics["val/loss"]


class At(Callback):
    """Does something before one training batch."""

    def __init__(self, epoch: int, batch: int, action: Callable[[], None]) -> None:
        self.when, self.action = (epoch, batch), action

    def on_batch_start(self, loop: Loop, batch: Batch) -> None:
        if (batch.epoch, batch.batch_idx) == self.when:
            self.action()


def toy_task(dropout: float = 0.3, name: str = "adamw") -> Classifier:
    torch.manual_seed(7)
    return Classifier(
        ToyModel(dropout),
        optimizer=OptimizerConfig(name=name, lr=0.01, layer_decay=0.9),  # type: ignore[arg-type]
        schedule=ScheduleConfig(warmup_epochs=1, min_lr=0.001),
        label_smoothing=0.1,
    )


def vit_task(noise: float = 0.1, optimizer: str = "adamw") -> Classifier:
    """A ViT of two blocks with dropout and stochastic depth, for `ToyImages`."""
    torch.manual_seed(7)
    sizes = {"image_size": (4, 6), "patch_size": 1, "channels": 1, "dim": 8, "depth": 2, "heads": 2}
    sizes |= {"dim_head": 4, "mlp_dim": 16, "num_classes": 4}
    model = create_model("vit_tiny_patch16_224", **sizes, dropout=noise, drop_path=2 * noise)
    config = OptimizerConfig(name=optimizer, lr=0.01)  # type: ignore[arg-type]
    return Classifier(model, optimizer=config, schedule=ScheduleConfig(warmup_epochs=1, min_lr=0.001))


class ToyImages(ToyData):
    """The same data as images of 4 x 6 pixels."""

    def __init__(self, noise: float = 0.1) -> None:
        super().__init__(noise)
        images, labels = self.train_set.tensors
        self.train_set = TensorDataset(images.repeat(1, 3).view(-1, 1, 4, 6), labels)


ENGINE = ("devices", "num_nodes", "strategy", "precision", "timeout", "plugins")
KEEPER = ("monitor", "mode", "keep", "every_n_steps", "sharded")


def make_loop(folder: Path, task: Task, data: Data, **options: Any) -> Loop:
    """Put a training together; options go to the engine, the keeper of checkpoints or the loop."""
    engine, keeper = (
        {name: options.pop(name) for name in names if name in options} for names in (ENGINE, KEEPER)
    )
    fabric = make_fabric(accelerator="cpu", **engine)
    fabric.launch()
    return Loop(fabric, task, data, checkpoints=Checkpoints(folder, **keeper), **options)


def train(
    folder: Path,
    *extra: Callback,
    resume: Path | None = None,
    epochs: int = 4,
    dropout: float = 0.3,
    noise: float = 0.1,
    data: ToyData | None = None,
    task: Task | None = None,
    **options: Any,
) -> Losses:
    losses = Losses()
    options = {"epochs": epochs, "callbacks": [losses, *extra], **options}
    loop = make_loop(folder, task or toy_task(dropout), data or ToyData(noise), **options)
    torch.manual_seed(99)
    fit(loop, resume)
    return losses


def run_toy(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run this file as a program."""
    command = [sys.executable, __file__, str(folder), *map(str, arguments)]
    return forked.run(command, env=forked.environment(), timeout=400)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--signal", type=int, help="sent to itself in the middle of epoch 1")
    parser.add_argument("--die", type=int, help="rank that dies in the middle of epoch 1")
    options = parser.parse_args()

    extra = []
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    if options.signal is not None and rank == 0:
        extra.append(At(1, 2, lambda: os.kill(os.getpid(), options.signal)))
    if options.die == rank:
        extra.append(At(1, 2, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    losses = train(
        options.folder,
        *extra,
        resume=options.ckpt,
        epochs=options.epochs,
        devices=options.devices,
        strategy=options.strategy,
        timeout=timedelta(seconds=60),
    )
    if rank == 0 and options.log is not None:
        options.log.write_text(json.dumps({"train": losses.train, "val": losses.val}))


if __name__ == "__main__":
    main()
