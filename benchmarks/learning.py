"""Teach every model of this package and of the public one at equal steps on equal batches, side by side.

    python benchmarks/learning.py --public FOLDER --json learning.json

FOLDER holds the public vit-pytorch package (`pip install --no-deps --target FOLDER vit-pytorch einops`),
which has this package's import name: each package runs in a process of its own. The documented constructors,
at a small size, learn scikit-learn's digits for 300 steps of AdamW at 1e-3 and PyTorch's defaults, 32 images
a step; accuracy is that on 450 test images. Learning without labels (`MAE`, `DINO` and others) has 300 steps,
too; its figures are what the features that enter the classifier are worth before and after, to the 5 nearest
neighbours and to a linear classifier. Finished rows are kept in a file, from which a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from learning_cases import CASES
from learning_worker import METHODS
from provenance import provenance
from sklearn.datasets import load_digits
from timing import Worker

Rows = list[dict[str, Any]]


def write_digits(path: Path) -> None:
    """Write the digits, in [-1, 1], in an order that is drawn once: 1347 to learn from and 450 to test on."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float()[:, None] / 8 - 1, torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    known, asked = order[:1347], order[1347:]
    parts = {"images": images[known], "labels": labels[known]}
    torch.save({**parts, "test_images": images[asked], "test_labels": labels[asked]}, path)


def teach(package: str, folder: Path, data: Path, wanted: Rows, steps: int, found: Path) -> None:
    """Ask a package's process for what is not known yet, and keep every answer."""
    worker = Worker(
        str(Path(__file__).parent / "learning_worker.py"), package, str(data), str(steps), path=folder
    )
    for request in wanted:
        answer = {"package": package, "steps": steps, **worker.ask(**request), **provenance()}
        with found.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answer) + "\n")
    worker.close()


def read(found: Path) -> Rows:
    """Read the rows that are known."""
    if not found.exists():
        return []
    return [json.loads(line) for line in found.read_text(encoding="utf-8").splitlines()]


def cell(rows: Rows, package: str, name: str, figure: str) -> tuple[str, float | None]:
    """Write the mean of a figure over the seeds, and its range; or the error."""
    mine = [row for row in rows if (row["package"], row["name"]) == (package, name)]
    values = [100 * row[figure] for row in mine if figure in row]
    if not values:
        return (mine[0]["error"] if mine else "not run"), None
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}", mean(values)


def show(rows: Rows, names: list[str], figures: tuple[str, ...]) -> None:
    """Print a table of both packages."""
    print("| | " + " | ".join(f"ours, {figure} | public, {figure}" for figure in figures) + " | ahead |")
    print("|---" * (2 * len(figures) + 2) + "|")
    gaps = []
    for name in names:
        pairs = [[cell(rows, package, name, figure) for package in ("ours", "public")] for figure in figures]
        texts = [text for pair in pairs for text, _ in pair]
        mine, theirs = (value for _, value in pairs[-1])
        gap = None if mine is None or theirs is None else mine - theirs
        gaps += [] if gap is None else [gap]
        print(f"| {name} | {' | '.join(texts)} | {'' if gap is None else f'{gap:+.1f}'} |")
    if gaps:
        print(f"\nmean of {len(gaps)} gaps: {mean(gaps):+.1f}; behind: {sum(gap < 0 for gap in gaps)}")


def main() -> None:
    """Run the comparison and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join([*CASES, *METHODS])}; all by default")
    parser.add_argument("--public", type=Path, required=True, help="folder with the public package")
    parser.add_argument("--ours", type=Path, default=Path(__file__).parents[1], help="folder with this one")
    parser.add_argument("--packages", nargs="+", default=["ours", "public"], choices=("ours", "public"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--data", type=Path, help="file of images and labels instead of the digits")
    parser.add_argument("--json", type=Path, default=Path("learning.jsonl"), help="where rows are kept")
    given = parser.parse_args()
    names = given.names or [*CASES, *METHODS]
    known = {(row["package"], row["name"], row["seed"], row["steps"]) for row in read(given.json)}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        data = given.data or Path(folder) / "digits.pt"
        if given.data is None:
            write_digits(data)
        running = []
        for package in given.packages:
            wanted = [
                {"name": name, "seed": seed}
                for seed in given.seeds
                for name in names
                if (package, name, seed, given.steps) not in known
            ]
            path = given.ours if package == "ours" else given.public
            running.append(pool.submit(teach, package, path, data, wanted, given.steps, given.json))
        for run in running:
            run.result()
    rows = [row for row in read(given.json) if row["steps"] == given.steps]
    show(rows, [name for name in names if name in CASES], ("accuracy",))
    if any(name in METHODS for name in names):
        show(
            rows,
            [name for name in names if name in METHODS],
            ("knn", "knn after", "linear", "linear after"),
        )


if __name__ == "__main__":
    main()
