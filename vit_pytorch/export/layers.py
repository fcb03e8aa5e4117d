"""The layers of a model that int8 is about: which run, which stay in floating point, which were missed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vit_pytorch.export.job import ExportError, ExportJob

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def running_layers(job: ExportJob) -> set[str]:
    """Name the layers with weights that run, as the model names its modules."""
    found: set[str] = set()
    modules = {name: module for name, module in job.graph.model.named_modules() if isinstance(module, LAYERS)}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: found.add(name))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        job.graph(job.example)
    for hook in hooks:
        hook.remove()
    return found


def kept_layers(job: ExportJob, layers: set[str]) -> set[str]:
    """Name the layers that stay in floating point.

    Raises:
        ExportError: if `keep` names none.
    """
    kept: set[str] = set()
    for name in job.keep:
        inside = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        if not inside:
            raise ExportError(f"no layer is named {name!r} to keep; layers are {', '.join(sorted(layers))}")
        kept |= inside
    return kept


def check_quantized(wanted: set[str], quantized: Iterable[str]) -> None:
    """Check that every layer is quantized that shall be.

    Raises:
        ExportError: naming those that are not.
    """
    lacking = sorted(wanted - set(quantized))
    if lacking:
        raise ExportError(
            f"{len(lacking)} of {len(wanted)} layers were not quantized: {', '.join(lacking[:5])}"
            f"{' …' if len(lacking) > 5 else ''}; name them by --keep, or take a floating-point precision or "
            "another format"
        )


def quantization_notes(job: ExportJob, quantized: set[str], floating: set[str]) -> dict[str, Any]:
    """Return what a report says of int8."""
    return {
        "quantization": job.quantization,
        "quantized_layers": len(quantized),
        "layers_in_floating_point": sorted(floating),
    }
