"""Count the multiplications of every named model for one input, mostly without computing any.

    python benchmarks/zoo.py docs/measured/zoo.json
    python benchmarks/zoo.py docs/measured/zoo.json --models "levit*"

Rows that are not counted again stay in the file. The documentation's table of models is made from it.
"""

from __future__ import annotations

import argparse
import json
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from vit_pytorch.ats_vit import ATSViT
from vit_pytorch.export.bench_worker import count_flops
from vit_pytorch.registry import entries
from vit_pytorch.registry.entry import ModelEntry

# what they compute depends on values, which tensors on `meta` do not have
BY_VALUE = (ATSViT,)


def measure(entry: ModelEntry) -> dict[str, object]:
    """Return the row of a model: the size of its input, and multiplications with their additions."""
    with torch.device("cpu" if issubclass(entry.architecture, BY_VALUE) else "meta"):
        model = entry.build().eval()
        size = tuple(model.default_cfg["input_size"])
        return {"name": entry.name, "input": size, "macs": count_flops(model, size) // 2}


def main() -> None:
    """Write the rows to a file, in the order of the registry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", nargs="*", default=["*"], help="patterns of the names to count")
    arguments = parser.parse_args()
    known = json.loads(arguments.file.read_text()) if arguments.file.is_file() else []
    rows = {row["name"]: row for row in known}
    for entry in entries().values():
        if any(fnmatchcase(entry.name, pattern) for pattern in arguments.models):
            rows[entry.name] = measure(entry)
            print(rows[entry.name], flush=True)
    lines = (json.dumps(rows[name]) for name in entries() if name in rows)
    arguments.file.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
