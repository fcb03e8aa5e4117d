"""Verify a file on the machine that runs it: `python -m vit_pytorch.export.check FILE`.

An export that cannot run where it was written comes with FILE.check.npz: images, and what the model computes
of them. This holds the file against that, and writes the figures into FILE.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vit_pytorch.export.deploy import load_exported
from vit_pytorch.export.job import ExportError, RefusedError
from vit_pytorch.export.samples import Samples
from vit_pytorch.export.verify import HINTS, UNKNOWN, Comparison, Loss, check, compare, decision_of
from vit_pytorch.training.saved import TASK


def check_file(file: str | Path) -> Comparison:
    """Hold a file against its images and outputs, and write what was found into its report.

    Raises:
        FileNotFoundError: if the file, its report or its images are not there.
        ExportError: if the file does not decide as the model does.
    """
    run = load_exported(file)
    report_file = Path(f"{file}.json")
    report = json.loads(report_file.read_text(encoding="utf-8"))
    with np.load(f"{file}.check.npz") as stored:
        images, outputs = torch.from_numpy(stored["images"]), torch.from_numpy(stored["outputs"])
        truth, source = stored["labels"], str(stored["source"])
    labels = [tuple(label) if isinstance(label, list) else label for label in truth.tolist()]
    known = (truth != UNKNOWN).reshape(len(labels), -1).all(axis=1)
    samples = Samples(
        source, [a if b else None for a, b in zip(labels, known, strict=True)], lambda i: images[i]
    )
    rest = iter(outputs)

    def reference(batch: Tensor) -> Tensor:
        return torch.stack([next(rest) for _ in batch])

    found = compare(
        reference,
        run,
        samples,
        finish=nn.Identity(),
        decide=decision_of(next(iter(report["output"])), report.get(TASK, {})),
        batch_size=min(16, report["input"]["images"]["max_batch"]),
    )
    try:
        loss: Loss = "merged" if report.get("merge_tokens") else report["precision"]
        check(found, loss, noise=samples.are_random)
    except ExportError as error:
        raise RefusedError(f"{file} is not to be used: {error}; {HINTS[loss]}") from error
    report["verification"] = found.as_dict()
    report_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """Check the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", help="what `vit export` wrote, with its .json and .check.npz beside it")
    try:
        print(f"{parser.parse_args().file}: {check_file(parser.parse_args().file)}")
    except (ExportError, FileNotFoundError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
