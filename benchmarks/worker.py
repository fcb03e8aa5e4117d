"""One library's process: builds its model of a case and times what it is told to, a line of JSON each."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from cases import CASES
from timing import Cell, Step, make_step, serve


def main() -> None:
    """Answer requests on standard input until it closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("library")
    parser.add_argument("threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", help="compile the model by this backend of torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    case = CASES[args.case]
    model = case.build(args.case, args.library)

    def prepare(cell: Cell) -> Step:
        timed: Any = torch.compile(model, backend=args.backend) if args.backend else model
        return make_step(timed, cell, case.image_size, device=args.device)

    parameters = sum(p.numel() for p in model.parameters())
    # whatever libraries print is no answer
    answers, sys.stdout = sys.stdout, sys.stderr
    serve(prepare, answers, device=args.device, parameters=parameters)


if __name__ == "__main__":
    main()
