"""Measure the peak memory of one training step on a clip of 32 frames of 224 x 224 pixels.

    python benchmarks/video_memory.py

The model is the plain 3-D ViT at size S with patches of 2 x 16 x 16: 3137 tokens. Each row runs in a process
of its own; what the process held before the step is given beside what the step adds.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import torch

from vit_pytorch.vit_3d import ViT3D

ROWS = {"kept activations": False, "gradient checkpointing": True}


def peak() -> float:
    """Give the most memory that the process has held so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(checkpointing: bool) -> tuple[float, float, float]:
    """Give GiB before the step, GiB at most in it, and its seconds."""
    torch.set_num_threads(1)
    model = ViT3D(
        image_size=224,
        frames=32,
        image_patch_size=16,
        frame_patch_size=2,
        num_classes=400,
        dim=384,
        depth=12,
        heads=6,
        mlp_dim=1536,
    )
    model.set_grad_checkpointing(checkpointing)
    clip = torch.randn(1, 3, 32, 224, 224)
    before, start = peak(), time.perf_counter()
    model(clip).square().sum().backward()
    return before, peak(), time.perf_counter() - start


def main() -> None:
    """Print a row with gradient checkpointing and one without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=ROWS, help="one row alone")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(*measure(ROWS[args.one]))
        return
    print("| 32 x 224 x 224, ViT-S, one step | GiB before | GiB at most | seconds, one thread |")
    print("|---|---|---|---|")
    for row in [args.only] if args.only else ROWS:
        command = [sys.executable, __file__, "--one", row]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        before, most, seconds = map(float, found)
        print(f"| {row} | {before:.2f} | {most:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
