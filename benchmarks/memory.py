"""Measure peak memory against the number of tokens: attention must not hold tokens x tokens weights.

    python benchmarks/memory.py

Each size runs in a process of its own; what the process held before the first pass is subtracted.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import torch

from vit_pytorch import create_model

SIDES = (16, 32, 48, 64, 96)
DTYPES = ("float32", "bfloat16")


def measure(mode: str, dtype: str, side: int) -> float:
    """Give the MiB that one pass of a two-layer ViT-S adds, on an image of side x side patches."""
    torch.set_num_threads(1)
    size = 16 * side
    model = create_model("vit_small_patch16_224", image_size=size, depth=2).to(getattr(torch, dtype))
    images = torch.randn(1, 3, size, size, dtype=getattr(torch, dtype))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if mode == "forward":
        with torch.inference_mode():
            model.eval()(images)
    else:
        model(images).sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print a row a mode and dtype: MiB per thousand tokens at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--one", nargs=3, metavar=("MODE", "DTYPE", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(measure(args.one[0], args.one[1], int(args.one[2])))
        return
    print("| MiB per 1000 tokens | " + " | ".join(f"{side**2} tokens" for side in SIDES) + " |")
    print("|---|" + "---|" * len(SIDES))
    for mode in ("forward", "train"):
        for dtype in DTYPES:
            cells = []
            for side in SIDES:
                command = [sys.executable, __file__, "--one", mode, dtype, str(side)]
                mib = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                cells.append(f"{1000 * mib / side**2:.1f}")
            print(f"| {mode} {dtype} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
