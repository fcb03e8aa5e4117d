"""Time `vit train` with one process on one core, and with two processes on two cores, in turn.

    python benchmarks/scaling.py --output scaling.json

Each process has one thread. A rate is the median over intervals of 50 optimizer steps, without the first
epoch and without validations; the efficiency is the rate of two processes by twice that of one, a median
over rounds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

IMAGES, SIZE, BATCH = 6400, 32, 32


def write_images(folder: Path) -> None:
    """Write images of noise and labels of ten classes, as IDX files."""
    generator = np.random.default_rng(0)
    for part, count in (("train", IMAGES), ("t10k", 64)):
        pixels = generator.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        for kind, head, content in (
            ("images-idx3", struct.pack(">4B3I", 0, 0, 8, 3, count, SIZE, SIZE), pixels),
            ("labels-idx1", struct.pack(">4BI", 0, 0, 8, 1, count), labels),
        ):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + content, 1))


def images_per_second(processes: int, data: Path, run: Path, options: Sequence[str]) -> float:
    """Train for two epochs on as many cores as processes; return the median rate of the second one."""
    command = [sys.executable, "-m", "vit_pytorch.cli", "train", f"--data=idx:{data}", f"--output={run}"]
    command += ["--recipe=light", f"--batch_size={BATCH}", "--epochs=2", "--accelerator=cpu", "--workers=0"]
    command += [f"--devices={processes}", "--logger=none", *options]
    cores = sorted(os.sched_getaffinity(0))[:processes]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step" and line["epoch"] == 2]
    # the first interval begins before a validation
    return median(line["images_per_second"] for line in steps[1:])


def main() -> None:
    """Run the rounds, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the JSON; standard output by default")
    parser.add_argument("options", nargs="*", help="more options of `vit train`, after --")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two cores are needed")
    rates: dict[int, list[float]] = {1: [], 2: []}
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        write_images(data)
        for number in range(arguments.rounds):
            # the one that comes first changes from round to round
            for processes in (1, 2) if number % 2 == 0 else (2, 1):
                run = Path(folder) / f"{number}-{processes}"
                rates[processes].append(images_per_second(processes, data, run, arguments.options))
    efficiencies = [two / (2 * one) for one, two in zip(rates[1], rates[2], strict=True)]
    measured = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "options": arguments.options,
        "images_per_second": {str(processes): values for processes, values in rates.items()},
        "efficiency": {"median": median(efficiencies), "rounds": efficiencies},
    }
    text = json.dumps(measured, indent=2) + "\n"
    if arguments.output is None:
        print(text, end="")
    else:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
