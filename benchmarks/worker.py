"""One library's process: builds its model of a case and times what it is told to, a line of JSON each."""

from __future__ import annotations

import sys

import torch
from cases import CASES
from timing import make_step, serve


def main() -> None:
    """Answer requests on standard input until it closes."""
    case, library, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    model = CASES[case].build(case, library)
    serve(
        lambda cell: make_step(model, cell, CASES[case].image_size),
        sys.stdout,
        parameters=sum(p.numel() for p in model.parameters()),
    )


if __name__ == "__main__":
    main()
