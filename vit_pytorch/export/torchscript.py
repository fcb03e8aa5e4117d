"""TorchScript, for programs that load models by `torch.jit.load`; PyTorch itself advises `torch.export`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from vit_pytorch.export.job import ExportJob, Format, Precision, Runtime


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Trace the graph; the file's extra files hold the metadata."""
    with torch.no_grad(), warnings.catch_warnings():
        # who asks for this format knows; the documentation says so, too
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        traced = torch.jit.trace(job.graph, job.example, check_trace=False)
        torch.jit.save(traced, file, _extra_files=job.metadata)
    return {}


def load(file: Path, precision: Precision) -> Runtime:
    """Load a file with `torch.jit.load`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated")
        return torch.jit.load(file)


FORMAT = Format(
    suffix=".ts",
    write=write,
    load=load,
    precisions=("fp32", "fp16", "bf16"),
    refusals={"int8": "take --format onnx"},
)
