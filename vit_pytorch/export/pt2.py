"""`torch.export` programs (.pt2), run by PyTorch without the code of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vit_pytorch.export.job import ExportJob, Format, Precision, Runtime


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Write a program; its extra files hold the metadata."""
    torch.export.save(job.program(), file, extra_files=job.metadata)
    return {}


def load(file: Path, precision: Precision) -> Runtime:
    """Load a program with `torch.export.load`."""
    return torch.export.load(file).module()


FORMAT = Format(
    suffix=".pt2",
    write=write,
    load=load,
    precisions=("fp32", "fp16", "bf16"),
    dynamic_size=True,
    refusals={"int8": "take --format onnx"},
)
