"""Timing models beside each other: each in a process of its own, a step of each in turn.

Imports nothing of this package, so that processes can load this file in which another package has its name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TextIO

import torch
from torch import Tensor, nn

try:
    import resource
except ImportError:
    # not on Windows
    resource = None  # type: ignore[assignment]

Step = Callable[[], object]
# The same for every library. Left alone, glibc's malloc moves the size from which it gives memory back to
# the system with the largest block that a process happened to free, and page faults then cost one library
# up to a sixth of its time and another nothing.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


@dataclass(frozen=True)
class Cell:
    """One measurement: forward or training step, at a dtype and a batch size."""

    mode: str
    dtype: str
    batch: int

    @property
    def request(self) -> dict[str, Any]:
        """What a worker is asked for a round: how often it warms up, and how many steps it times."""
        return {
            "mode": self.mode,
            "dtype": self.dtype,
            "batch": self.batch,
            "warmup": 3,
            "steps": 2 if self.batch > 1 else 5,
        }


def classification_loss(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the cross-entropy of a classifier on labels that are all different."""
    labels = torch.arange(len(images), device=images.device)
    return nn.functional.cross_entropy(model(images).float(), labels)


def make_step(
    model: nn.Module,
    cell: Cell,
    size: tuple[int, ...],
    *,
    device: str = "cpu",
    loss: Callable[[nn.Module, Tensor], Tensor] = classification_loss,
    after: Callable[[], object] = lambda: None,
) -> Step:
    """Make the function that is timed; on a GPU it ends when the GPU has done what it was given.

    Args:
        model: is moved to the device and to the cell's precision.
        cell: what is measured.
        size: of one image, (channels, height, width).
        device: where the model runs.
        loss: what training differentiates, of the model and the images.
        after: what training does after a step of the optimizer.
    """
    dtype = getattr(torch, cell.dtype)
    model = model.to(device, dtype)
    images = torch.randn(cell.batch, *size, device=device, dtype=dtype)
    if cell.mode == "forward":
        model.eval()

        def forward() -> None:
            with torch.inference_mode():
                model(images)

        return synchronized(forward, device)

    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        loss(model, images).backward()
        optimizer.step()
        after()

    return synchronized(train, device)


def synchronized(step: Step, device: str) -> Step:
    """Return a step that waits for the GPU, where it runs on one."""
    if not device.startswith("cuda"):
        return step

    def waiting() -> None:
        step()
        torch.cuda.synchronize()

    return waiting


def peak_mib(device: str = "cpu") -> float | None:
    """Return the most memory that this process has held: of the GPU's by tensors, or of the machine's.

    None where the system does not tell, as on Windows.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return None
    # in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def time_steps(step: Step, count: int) -> list[float]:
    """Return the seconds of each of some calls of a step."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def serve(prepare: Callable[[Cell], Step], answers: TextIO, *, device: str = "cpu", **facts: Any) -> None:
    """Time what standard input asks for, a line of JSON each, until it closes.

    Args:
        prepare: makes the step of a cell.
        answers: where answers are written, a line of JSON each.
        device: where the steps run, whose memory is measured; a GPU's anew for each cell.
        facts: what every answer says in addition.
    """
    cell, step = None, None
    for line in sys.stdin:
        request = json.loads(line)
        wanted = Cell(request["mode"], request["dtype"], request["batch"])
        if wanted != cell or step is None:
            cell, step = wanted, None
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            step = prepare(wanted)
            for _ in range(request["warmup"]):
                step()
        seconds = time_steps(step, request["steps"])
        answer = {"seconds": seconds, "peak_mib": peak_mib(device), **facts}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A Python program in its own process, which answers lines of JSON.

    Args:
        command: what the interpreter runs, with its arguments.
        path: folder whose packages it imports before others.
    """

    def __init__(self, *command: str, path: Path) -> None:
        env = {**MALLOC, **os.environ, "PYTHONPATH": str(path)}
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            RuntimeError: if the program has ended; says of which error, where it does.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args!r} ended with status {self.process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise RuntimeError(found["error"]) from RuntimeError(found["trace"])
        return found

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def time_in_turn(
    workers: Mapping[str, Worker], cell: Cell | Mapping[str, Cell], rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Time one cell, or one of each worker, a few steps of each in turn, forwards and backwards.

    A round's times are neighbours, so that a machine's slow moments hit all.

    Returns:
        For each worker the seconds of a step in every round, the least of its steps; and its last answer.
    """
    times: dict[str, list[float]] = {name: [] for name in workers}
    answers: dict[str, dict[str, Any]] = {}
    requests = {name: (cell if isinstance(cell, Cell) else cell[name]).request for name in workers}
    for name, worker in workers.items():
        worker.ask(**{**requests[name], "steps": 1})
    for turn in range(rounds):
        for name in list(workers) if turn % 2 == 0 else list(workers)[::-1]:
            answers[name] = workers[name].ask(**requests[name])
            times[name].append(min(answers[name]["seconds"]))
    return times, answers


def spread(values: list[float]) -> float:
    """Return the distance between the quartiles; 0 for one value."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low


@dataclass(frozen=True)
class Ratio:
    """How many times as long something took as another, a median over rounds.

    Args:
        value: above 1, the other is faster.
        spread: distance between the quartiles over rounds.
        rounds: how many; one does not show a spread.
    """

    value: float
    spread: float
    rounds: int

    @property
    def is_clear(self) -> bool:
        """Whether the difference from 1 is larger than the spread."""
        return self.rounds > 1 and abs(self.value - 1) > self.spread


def ratio(theirs: list[float], ours: list[float]) -> Ratio:
    """Compare times round by round: theirs over ours."""
    rounds = [one / other for one, other in zip(theirs, ours, strict=True)]
    return Ratio(median(rounds), spread(rounds), len(rounds))
