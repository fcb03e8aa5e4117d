"""What a training says while it runs, and where its time goes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vit_pytorch.export.timing import peak_mib
from vit_pytorch.storage import replacing, write_file
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.history import History, describe
from vit_pytorch.training.task import Batch

if TYPE_CHECKING:
    from vit_pytorch.training.loop import Loop

# steps that a profile leaves out: kernels are chosen and memory is fetched in them
WARMUP_STEPS = 3


class Progress(Callback):
    """Prints where the training is: on a terminal one line that lives, elsewhere a line now and then.

    Args:
        history: knows the row of an epoch, which is printed at its end
        stream: where to print; default standard output
        interval: seconds between lines; default 0.2 on a terminal, 30 elsewhere
    """

    def __init__(
        self, history: History, *, stream: TextIO | None = None, interval: float | None = None
    ) -> None:
        self.history = history
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.interval = interval if interval is not None else 0.2 if self.live else 30.0
        self._start = self._shown = 0.0
        self._batches = self._images = 0

    def on_train_start(self, loop: Loop) -> None:
        """Start the clock."""
        self._start = self._shown = time.monotonic()

    def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
        """Print step, loss, images per second, time left and memory, if it is time."""
        self._batches += 1
        self._images += len(batch.images) * loop.fabric.world_size
        now = time.monotonic()
        if not loop.fabric.is_global_zero or now - self._shown < self.interval:
            return
        self._shown, passed = now, now - self._start
        left = loop.epochs * loop.epoch_batches - loop.epoch * loop.epoch_batches - loop.batch
        parts = [
            f"epoch {loop.epoch + 1}/{loop.epochs}",
            f"step {loop.step}/{loop.total_steps}",
            f"loss {float(metrics['train/loss']):.4f}",
            f"{self._images / passed:.0f} images/s",
            f"{duration(passed / self._batches * left)} left",
        ]
        memory = peak_mib(str(loop.fabric.device))
        if memory is not None:
            parts.append(f"{memory / 1024:.1f} GiB")
        self._print("  ".join(parts), stays=not self.live)

    def on_epoch_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        """Print the epoch's row."""
        if loop.fabric.is_global_zero:
            self._print(describe(self.history.row, loop.epochs), stays=True)

    def on_train_end(self, loop: Loop) -> None:
        """Leave the terminal without a line that lives."""
        if self.live and loop.fabric.is_global_zero:
            self._print("", stays=False)

    def _print(self, line: str, *, stays: bool) -> None:
        # \r returns to the start of the line, and the rest of what stood there is erased
        text = f"\r{line}\x1b[K" if self.live else line
        print(text, end="\n" if stays else "", file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Profiler(Callback):
    """Records some batches by torch.profiler, after a few others, and prints where the time goes.

    Leaves `profile/trace.json` in the run's folder, for https://ui.perfetto.dev, and `profile/table.txt`.

    Args:
        folder: the run's folder
        batches: number of batches
    """

    def __init__(self, folder: Path, batches: int) -> None:
        self.folder = folder / "profile"
        self.done = False
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=WARMUP_STEPS - 1, warmup=1, active=batches, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
        )

    def on_train_start(self, loop: Loop) -> None:
        """Start; only the first process is recorded."""
        if loop.fabric.is_global_zero:
            self._profile.start()

    def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
        """Count a batch."""
        if loop.fabric.is_global_zero and not self.done:
            self._profile.step()

    def on_train_end(self, loop: Loop) -> None:
        """Stop, also if the training was shorter."""
        if loop.fabric.is_global_zero and not self.done:
            self._profile.stop()

    def _write(self, recorded: profile) -> None:
        self.done = True
        with replacing(self.folder / "trace.json") as file:
            recorded.export_chrome_trace(str(file))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        text = recorded.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)
        write_file(self.folder / "table.txt", text)
        print(f"\n{text}\nprofile {self.folder / 'trace.json'}", flush=True)
