"""Reference convergence points: in how many steps models learn scikit-learn's digits, over ten seeds.

    python benchmarks/convergence.py docs/measured/convergence.json
    python benchmarks/convergence.py docs/measured/convergence.json --cases ViT MAE

The cases are those of `tests/papers/convergence.py`, of which a test runs another seed: it fails outside the
bounds within which all but one seed in a thousand arrive. A minute a case. With `--cases` the file keeps its
rows of the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from provenance import provenance

from tests.papers.convergence import BATCH, CASES, SEEDS, bounds, steps_to_goal


def measure(name: str) -> dict[str, Any]:
    """Count the steps of ten seeds to the goal of a case.

    Raises:
        SystemExit: where a seed does not reach it.
    """
    case = CASES[name]
    steps: list[int] = []
    for seed in range(SEEDS):
        found = steps_to_goal(case, seed)
        if found is None:
            raise SystemExit(f"{name} does not reach {case.goal} with seed {seed}")
        steps.append(found)
    return {
        "name": name,
        "figure": case.measure.__name__,
        "goal": case.goal,
        "batch": BATCH,
        "lr": case.lr,
        "steps": steps,
        "median": median(steps),
        "bounds": [round(bound, 1) for bound in bounds(steps, case.every)],
        **provenance(),
    }


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.file.read_text()) if options.file.is_file() else []
    found = {row["name"]: row for row in rows}
    for name in options.cases:
        found[name] = measure(name)
        print(json.dumps(found[name]), flush=True)
        ordered = [found[case] for case in CASES if case in found]
        options.file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
