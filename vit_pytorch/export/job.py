"""What all formats have in common: the module that is exported, and what a format offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from vit_pytorch.extras import install_command

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Quantization = Literal["static", "dynamic"]
Output = Literal["probabilities", "logits", "features"]
Runtime = Callable[[Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# PyTorch 2.6 refuses to slice tensors whose dynamic axis has no upper bound
MAX_BATCH = 4096


class ExportError(ValueError):
    """A model cannot be exported as asked for."""


class RefusedError(ExportError):
    """An export does not decide as the model does."""


class ExportGraph(nn.Module):
    """A model as it is deployed: `images` in; probabilities, logits or features out, in single precision.

    Args:
        model: takes normalized images; its dtype is that of the computation.
        output: what comes out.
        normalize: scales and normalizes images of bytes inside the graph; None if it takes normalized ones.
    """

    def __init__(self, model: nn.Module, output: Output, normalize: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.normalize = normalize
        self.dtype = next(model.parameters()).dtype

    def forward(self, images: Shaped[Tensor, "b c *size"]) -> Float[Tensor, "b k"]:
        """Compute the output for a batch."""
        if self.normalize is not None:
            images = self.normalize(images)
        x = self.model(images.to(self.dtype)).float()
        return x.softmax(dim=1) if self.output == "probabilities" else x


@dataclass(frozen=True)
class ExportJob:
    """What a format writes.

    Args:
        graph: the module, in eval mode and in the dtype of `precision`.
        example: two images.
        precision: number format of the computation.
        metadata: JSON by name, to be stored inside the file where the format has a place for it.
        opset: ONNX operator set.
        quantization: whether int8 activations get their ranges from calibration or at run time.
        calibration: batches of images for static quantization.
        keep: layers that stay in floating point, by the names of their modules or of modules around them.
    """

    graph: ExportGraph
    example: Shaped[Tensor, "2 c *size"]
    precision: Precision
    metadata: dict[str, str]
    opset: int = 18
    quantization: Quantization = "static"
    calibration: Sequence[Tensor] = ()
    keep: tuple[str, ...] = ()

    def program(self) -> ExportedProgram:
        """Trace the graph with a dynamic batch."""
        with torch.no_grad():
            batch = {0: Dim("batch", min=1, max=MAX_BATCH)}
            return export(self.graph, (self.example,), dynamic_shapes={"images": batch}, strict=True)


@dataclass(frozen=True)
class Format:
    """A format of files.

    Args:
        suffix: how its files are named.
        write: writes a job to a file, and files that belong to it beside it; returns what the report shall
            say of it.
        load: loads a file with the format's own runtime, for a precision.
        precisions: those it can be written in; for the others, `refusals` says why not and what to do.
        packages: importable names that writing and loading need.
        refusals: the reason for each precision that is not offered.
    """

    suffix: str
    write: Callable[[ExportJob, Path], dict[str, Any]]
    load: Callable[[Path, Precision], Runtime]
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)

    def check(self, name: str, precision: Precision) -> None:
        """Check that the format can be written here.

        Raises:
            ExportError: if a package is not installed, with the command that installs it; if the precision
                is not offered.
        """
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ExportError(f"format {name} needs {', '.join(missing)}: {install_command('export')}")
        if precision not in self.precisions:
            raise ExportError(
                f"format {name} is written in {', '.join(self.precisions)}, not in {precision}: "
                f"{self.refusals[precision]}"
            )
