"""The course of a training: one row an epoch, in a CSV file and on the terminal."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

Row = dict[str, float]
# what the terminal shows of a row, where it is measured
SHOWN = {
    "val/loss": ".4f",
    "val/accuracy": ".2%",
    "val/knn_accuracy": ".2%",
    "val/feature_std": ".3f",
    "val/teacher_entropy": ".3f",
}


class History(Callback):
    """Writes a row to a CSV file after each epoch: losses, accuracies, learning rate and time.

    Rows of epochs that a resumed run repeats are replaced. The training loss is the mean over the epoch's
    batches; under MixUp, CutMix or label smoothing it is not comparable with the validation loss.

    Args:
        path: The file.
        show: Whether to print a line an epoch.
    """

    def __init__(self, path: str | os.PathLike[str], *, show: bool = False) -> None:
        self.path = Path(path)
        self.show = show
        self._loss: Tensor = torch.zeros(())
        self._batches = 0
        self._seconds = 0.0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Loss and time so far."""
        return {"loss": float(self._loss), "batches": self._batches, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on adding."""
        self._loss = torch.tensor(state_dict["loss"])
        self._batches, self._seconds = state_dict["batches"], state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and forget epochs after the one that a resumed run goes on with."""
        self._since = time.monotonic()
        self._loss = self._loss.to(pl_module.device)
        if trainer.is_global_zero and self.path.exists():
            write_rows(
                self.path, [row for row in read_rows(self.path) if row["epoch"] <= trainer.current_epoch]
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Add the batch's loss."""
        self._loss = self._loss + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._batches += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row; Lightning has validated by now."""
        loss = trainer.strategy.reduce(self._loss / max(1, self._batches), reduce_op="mean")
        self._loss, self._batches = torch.zeros_like(self._loss), 0
        if not trainer.is_global_zero:
            return
        measured = {key: float(value) for key, value in trainer.callback_metrics.items()}
        row: Row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": measured["lr"],
            "train/loss": float(loss),
            **{key: value for key, value in measured.items() if key.startswith("val/")},
            "seconds": round(self._elapsed(), 2),
        }
        rows = read_rows(self.path) if self.path.exists() else []
        write_rows(self.path, [*rows, row])
        if self.show:
            print(describe(row, trainer.max_epochs or 0), flush=True)

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._since if self._since else 0.0)


def describe(row: Row, epochs: int) -> str:
    """A row as a line for people."""
    shown = [f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}", f"train loss {row['train/loss']:.4f}"]
    for key, form in SHOWN.items():
        if key in row:
            shown.append(f"{key.replace('/', ' ').replace('_', ' ')} {row[key]:{form}}")
    return "  ".join([*shown, f"{row['seconds']:.0f} s"])


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the file that `History` writes; what an epoch did not measure is not in its row."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [
            {key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)
        ]


def write_rows(path: str | os.PathLike[str], rows: list[Row]) -> None:
    """Write rows, replacing the file in one step; what a row lacks is left empty."""
    path = Path(path)
    if not rows:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(key for row in rows for key in row)
        columns["seconds"] = columns.pop("seconds", None)
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            whole = {key: int(value) if key in ("epoch", "step") else value for key, value in row.items()}
            writer.writerow(whole)
    temporary.replace(path)
