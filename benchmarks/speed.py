"""Time a model against its peers, all libraries in turn in one run, and print ratios.

    python benchmarks/speed.py --public FOLDER

FOLDER holds the public vit-pytorch package (`pip install --no-deps --target FOLDER vit-pytorch`), which
has this package's import name. A ratio is the peer's time by ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES

HERE = Path(__file__).parent


class Worker:
    """A library in its own process, which imports what lies in a folder."""

    def __init__(self, arguments: Sequence[str], path: Path) -> None:
        env = {**os.environ, "PYTHONPATH": str(path)}
        command = [sys.executable, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args!r} ended with status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def main() -> None:
    """Run the comparison and print one row a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="vit_small_patch16_224")
    parser.add_argument("--public", type=Path, help="folder with the public vit-pytorch package")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--modes", nargs="+", default=["forward", "train"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()

    libraries = [name for name in CASES[args.case].libraries if name != "public vit-pytorch" or args.public]
    peers = [name for name in libraries if name != "ours"]
    print(f"| {args.case} | batch | ours, ms | " + " | ".join(f"{p}, ratio" for p in peers) + " | peak MiB |")
    print("|---|---|---|" + "---|" * len(peers) + "---|")
    rows = []
    for mode, dtype, batch in product(args.modes, args.dtypes, args.batches):
        rows.append(row := measure(args, libraries, mode, dtype, batch))
        ratios = " | ".join(f"{row['ratio'][peer]:.2f}" for peer in peers)
        peaks = ", ".join(f"{name} {row['peak_mib'][name]:.0f}" for name in libraries)
        print(f"| {mode} {dtype} | {batch} | {row['ms']['ours']:.1f} | {ratios} | {peaks} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(
    args: argparse.Namespace, libraries: list[str], mode: str, dtype: str, batch: int
) -> dict[str, Any]:
    """Time one cell in fresh processes, a step of each library in turn.

    A round's ratio compares neighbours in time, so that a machine's slow moments hit both; the median
    over rounds is reported.
    """
    workers = {
        name: Worker(
            [str(HERE / "worker.py"), args.case, name, str(args.threads)],
            args.public if name == "public vit-pytorch" else HERE.parent,
        )
        for name in libraries
    }
    request = {"mode": mode, "dtype": dtype, "batch": batch, "warmup": 3, "steps": 2 if batch > 1 else 5}
    times: dict[str, list[float]] = {name: [] for name in libraries}
    answers: dict[str, dict[str, Any]] = {}
    for worker in workers.values():
        worker.ask(**{**request, "steps": 1})
    for turn in range(args.rounds):
        order = libraries if turn % 2 == 0 else libraries[::-1]
        for name in order:
            answers[name] = workers[name].ask(**request)
            times[name].append(min(answers[name]["seconds"]))
    for worker in workers.values():
        worker.close()
    ratio = {
        name: median(theirs / ours for theirs, ours in zip(times[name], times["ours"], strict=True))
        for name in libraries
    }
    return {
        "mode": mode,
        "dtype": dtype,
        "batch": batch,
        "ms": {name: 1000 * median(seconds) for name, seconds in times.items()},
        "ratio": ratio,
        "peak_mib": {name: answers[name]["peak_mib"] for name in libraries},
        "parameters": {name: answers[name]["parameters"] for name in libraries},
    }


if __name__ == "__main__":
    main()
