"""Time a model against its peers, all libraries in turn in one run, and print ratios.

    python benchmarks/speed.py vit_small_patch16_224 --public FOLDER

FOLDER holds the public vit-pytorch package (`pip install --no-deps --target FOLDER vit-pytorch`), which
has this package's import name. A ratio is the peer's time by ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from cases import CASES, PUBLIC
from provenance import provenance
from timing import Cell, Worker, ratio, time_in_turn

from vit_pytorch.data.loader import usable_cores
from vit_pytorch.registry import find_entry

HERE = Path(__file__).parent
ORDER = ([*CASES], ["forward", "train"], ["float32", "bfloat16", "float16"])


def main() -> None:
    """Run the comparison and print one row a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "cases", nargs="*", metavar="MODEL", help=f"any of {', '.join(CASES)}; all by default"
    )
    parser.add_argument("--public", type=Path, help="folder with the public vit-pytorch package")
    parser.add_argument("--sets", type=int, default=3, help="times that all processes start afresh")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each set")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--modes", nargs="+", default=["forward", "train"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--json", type=Path, help="write the figures here, too, in place of older ones")
    args = parser.parse_args()

    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"no case is named {', '.join(unknown)}, only {', '.join(CASES)}")
    rows = []
    for name in args.cases or CASES:
        rows += run_case(args, name)
        if args.json:
            keep(rows, args.json)
    print_summary(rows)


def keep(rows: list[dict[str, Any]], file: Path) -> None:
    """Write rows in the order of the cases, with those of the file that were not measured again."""

    def cell(row: dict[str, Any]) -> tuple[int, int, int, int]:
        names = (row["model"], row["mode"], row["dtype"])
        return *(known.index(name) for known, name in zip(ORDER, names, strict=True)), row["batch"]

    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    found = {cell(row): row for row in [*known, *rows]}
    text = json.dumps([found[place] for place in sorted(found)], indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def run_case(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Time all cells of one model and print them as a table."""
    libraries = [library for library in CASES[name].libraries if library != PUBLIC or args.public]
    peers = [library for library in libraries if library != "ours"]
    print(f"| {name} | batch | ours, ms | " + " | ".join(f"{p}, ratio" for p in peers) + " | peak MiB |")
    print("|---|---|---|" + "---|" * len(peers) + "---|")
    rows = []
    for mode, dtype, batch in product(args.modes, args.dtypes, args.batches):
        rows.append(row := measure(args, name, libraries, Cell(mode, dtype, batch)))
        ratios = " | ".join(f"{row['ratio'][peer]:.2f}" for peer in peers)
        peaks = ", ".join(f"{library} {row['peak_mib'][library]:.0f}" for library in libraries)
        print(f"| {mode} {dtype} | {batch} | {row['ms']['ours']:.1f} | {ratios} | {peaks} |", flush=True)
    print()
    return rows


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Print the geometric mean and the smallest of the ratios against each peer."""
    for peer in sorted({peer for row in rows for peer in row["ratio"]} - {"ours"}):
        ratios: dict[str, list[float]] = {row["model"]: [] for row in rows if peer in row["ratio"]}
        for row in rows:
            if peer in row["ratio"]:
                ratios[row["model"]].append(row["ratio"][peer])
        every = [ratio for some in ratios.values() for ratio in some]
        worst = min(ratios, key=lambda model: min(ratios[model]))
        print(f"{peer}: geometric mean {geometric_mean(every):.2f}, least {min(every):.2f} ({worst})")


def measure(args: argparse.Namespace, model: str, libraries: list[str], cell: Cell) -> dict[str, Any]:
    """Time one cell in fresh processes, a step of each library in turn.

    A round's ratio compares neighbours in time, so that a machine's slow moments hit both. Where a process's
    memory lies decides over some percent of its time, for as long as it lives, so that several sets of
    processes are measured. The median over all rounds is reported.
    """
    times: dict[str, list[float]] = {name: [] for name in libraries}
    for _ in range(args.sets):
        workers = {
            name: Worker(
                str(HERE / "worker.py"),
                model,
                name,
                str(args.threads),
                path=args.public if name == PUBLIC else HERE.parent,
            )
            for name in libraries
        }
        found, answers = time_in_turn(workers, cell, args.rounds)
        for name, worker in workers.items():
            times[name] += found[name]
            worker.close()
    return {
        "model": model,
        "architecture": find_entry(model).architecture.__name__,
        **provenance(),
        **asdict(cell),
        "ms": {name: 1000 * median(seconds) for name, seconds in times.items()},
        "ratio": {name: ratio(times[name], times["ours"]).value for name in libraries},
        "peak_mib": {name: answers[name]["peak_mib"] for name in libraries},
        "parameters": {name: answers[name]["parameters"] for name in libraries},
    }


if __name__ == "__main__":
    main()
