"""One library's process: builds its model of a case and times what it is told to, a line of JSON each."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cases import CASES
from torch import nn


@dataclass(frozen=True)
class Cell:
    """One measurement: forward or training step, at a dtype and a batch size."""

    mode: str
    dtype: str
    batch: int


def make_step(model: nn.Module, cell: Cell, size: tuple[int, ...]) -> Callable[[], None]:
    """Make the function that is timed."""
    dtype = getattr(torch, cell.dtype)
    model = model.to(dtype)
    images = torch.randn(cell.batch, *size, dtype=dtype)
    if cell.mode == "forward":
        model.eval()

        def forward() -> None:
            with torch.inference_mode():
                model(images)

        return forward

    model.train()
    labels = torch.arange(cell.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images).float(), labels).backward()
        optimizer.step()

    return train


def main() -> None:
    """Answer requests on standard input until it closes."""
    case, library, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = CASES[case].build(case, library)
    parameters = sum(p.numel() for p in model.parameters())
    cell, step = None, None
    for line in sys.stdin:
        request = json.loads(line)
        wanted = Cell(request["mode"], request["dtype"], request["batch"])
        if wanted != cell or step is None:
            cell, step = wanted, make_step(model, wanted, CASES[case].image_size)
            for _ in range(request["warmup"]):
                step()
        seconds = []
        for _ in range(request["steps"]):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_mib": peak, "parameters": parameters}), flush=True)


if __name__ == "__main__":
    main()
