"""The course of a training: a row an epoch in a CSV file, lines of JSON, and the loggers of other tools."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.loggers import Logger
from torch import Tensor

from vit_pytorch.storage import write_file
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.engine import sum_over_processes
from vit_pytorch.training.task import Batch

if TYPE_CHECKING:
    from vit_pytorch.training.loop import Loop

Row = dict[str, float]
METRICS = "metrics.csv"
LINES = "metrics.jsonl"
# what the terminal shows of a row, where it is measured
SHOWN = {
    "val/loss": ".4f",
    "val/accuracy": ".2%",
    "val/map": ".2%",
    "val/f1": ".2%",
    "val/mae": ".4g",
    "val/r2": ".4f",
    "val/knn_accuracy": ".2%",
    "val/feature_std": ".3f",
    "val/teacher_entropy": ".3f",
}


class History(Callback):
    """Writes down losses, accuracies, learning rate and time.

    `metrics.csv` has a row an epoch. `metrics.jsonl` has an object a line, of every logged step
    (`"event": "step"`) and of every epoch (`"event": "epoch"`). What a resumed run repeats is replaced. The
    training loss of an epoch is the mean over its batches whose loss is finite; under MixUp, CutMix or label
    smoothing it is not comparable with the validation loss.

    Args:
        folder: the run's folder
        loggers: what else takes the same values
        every: optimizer steps between logged ones; default 50

    Attributes:
        row: The row of the latest epoch.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, loggers: Sequence[Logger] = (), every: int = 50
    ) -> None:
        self.path = Path(folder) / METRICS
        self.lines = Path(folder) / LINES
        self.loggers = loggers
        self.every = every
        self.row: Row = {}
        self._loss: Tensor = torch.zeros(())
        self._batches: Tensor = torch.zeros(())
        self._seconds = 0.0
        self._since = 0.0
        self._logged = 0
        self._images = 0
        self._images_since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return loss and time so far."""
        return {"loss": float(self._loss), "batches": int(self._batches), "seconds": self._elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on adding."""
        self._loss = torch.tensor(state["loss"])
        self._batches, self._seconds = torch.tensor(float(state["batches"])), state["seconds"]

    def on_train_start(self, loop: Loop) -> None:
        """Start the clock, and forget what comes after the checkpoint of a resumed run."""
        self._since = self._images_since = time.monotonic()
        self._loss, self._batches = (value.to(loop.fabric.device) for value in (self._loss, self._batches))
        self._logged = loop.step
        if not loop.fabric.is_global_zero:
            return
        if self.path.exists():
            write_rows(self.path, [row for row in read_rows(self.path) if row["epoch"] <= loop.epoch])
        if self.lines.exists():
            kept = [line for line in read_lines(self.lines) if line["step"] <= loop.step]
            write_file(self.lines, "".join(json.dumps(line) + "\n" for line in kept))

    def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
        """Add the batch's loss; log the step, if it is time."""
        loss = metrics["train/loss"].float()
        finite = loss.isfinite()
        self._loss = self._loss + loss.where(finite, 0.0)
        self._batches = self._batches + finite
        self._images += len(batch.images) * loop.fabric.world_size
        if loop.step == self._logged or loop.step % self.every:
            return
        self._logged = loop.step
        mean = sum_over_processes(loop.fabric, metrics["train/loss"].float()) / loop.fabric.world_size
        now = time.monotonic()
        rate = self._images / max(now - self._images_since, 1e-9)
        self._images, self._images_since = 0, now
        values = {**metrics, "train/loss": mean, "lr": learning_rate(loop), "images_per_second": rate}
        self._log(loop, "step", {name: float(value) for name, value in values.items()})

    def on_epoch_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        """Write the row."""
        total = sum_over_processes(loop.fabric, self._loss / self._batches.clamp(min=1))
        self._loss, self._batches = torch.zeros_like(self._loss), torch.zeros_like(self._batches)
        self.row = {
            "epoch": loop.epoch + 1,
            "step": loop.step,
            "lr": learning_rate(loop),
            "train/loss": float(total) / loop.fabric.world_size,
            **metrics,
            "seconds": round(self._elapsed(), 2),
        }
        if loop.fabric.is_global_zero:
            write_rows(self.path, [*(read_rows(self.path) if self.path.exists() else []), self.row])
            self._log(loop, "epoch", {name: value for name, value in self.row.items() if name != "step"})

    def on_train_end(self, loop: Loop) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.finalize("success")

    def _log(self, loop: Loop, event: str, values: dict[str, float]) -> None:
        if not loop.fabric.is_global_zero:
            return
        with self.lines.open("a", encoding="utf-8") as file:
            line = {"event": event, "epoch": loop.epoch + 1, "step": loop.step, **values}
            file.write(json.dumps(line) + "\n")
        for logger in self.loggers:
            logger.log_metrics(values, step=loop.step)

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._since if self._since else 0.0)


def learning_rate(loop: Loop) -> float:
    """Return the learning rate of the latest step, of the layer in which it is greatest."""
    return max(group["lr"] for group in loop.optimizer.param_groups)


def describe(row: Row, epochs: int) -> str:
    """A row as a line for people."""
    shown = [f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}", f"train loss {row['train/loss']:.4f}"]
    for key, form in SHOWN.items():
        if key in row:
            shown.append(f"{key.replace('/', ' ').replace('_', ' ')} {row[key]:{form}}")
    return "  ".join([*shown, f"{row['seconds']:.0f} s"])


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the file that `History` writes; what an epoch did not measure is not in its row.

    Raises:
        ValueError: if it is damaged
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            text = file.read()
        rows = [
            {key: float(value) for key, value in row.items() if value != ""}
            for row in csv.DictReader(io.StringIO(text, newline=""))
        ]
        if not rows or not text.endswith("\n") or not all("epoch" in row for row in rows):
            raise ValueError("it ends too early, or has no column 'epoch'")
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it to go on without the course of the epochs before"
        ) from error
    return rows


def write_rows(path: str | os.PathLike[str], rows: list[Row]) -> None:
    """Write rows, replacing the file in one step; what a row lacks is left empty."""
    path = Path(path)
    if not rows:
        path.unlink(missing_ok=True)
        return
    columns = dict.fromkeys(key for row in rows for key in row)
    columns["seconds"] = columns.pop("seconds", None)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: int(value) if key in ("epoch", "step") else value for key, value in row.items()}
        )
    write_file(path, text.getvalue())


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`; a last line that a killed process left half written is left out.

    Raises:
        ValueError: if another line is damaged
    """
    *whole, rest = Path(path).read_text(encoding="utf-8").split("\n")
    del rest
    try:
        return [json.loads(line) for line in whole]
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it to go on without the steps before"
        ) from error
