"""Programs compiled ahead of time by AOTInductor (.pt2), for the kind of processor that compiled them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import _inductor

from vit_pytorch.export.job import ExportJob, Format, Precision, Runtime


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Compile a program; takes a C++ compiler and about a minute."""
    with torch.no_grad():
        _inductor.aoti_compile_and_package(job.program(), package_path=str(file))
    return {}


def load(file: Path, precision: Precision) -> Runtime:
    """Load a compiled package."""
    return _inductor.aoti_load_package(str(file))


FORMAT = Format(
    suffix=".pt2",
    write=write,
    load=load,
    precisions=("fp32", "fp16", "bf16"),
    refusals={"int8": "take --format onnx"},
)
