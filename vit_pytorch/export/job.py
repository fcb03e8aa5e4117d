"""What all formats have in common: the module that is exported, and what a format offers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from vit_pytorch.base import VisionModel
from vit_pytorch.extras import install_command
from vit_pytorch.training.features import Features, compute_features

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Quantization = Literal["static", "dynamic"]
Output = Literal["probabilities", "logits", "features"]
Runtime = Callable[[Tensor], Tensor]
# PyTorch's exporter writes no older one
OLDEST_OPSET = 18
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# PyTorch 2.6 refuses to slice tensors whose dynamic axis has no upper bound
MAX_BATCH = 4096
# along an edge
MAX_PATCHES = 1024


class ExportError(ValueError):
    """A model cannot be exported as asked for."""


class RefusedError(ExportError):
    """An export does not decide as the model does."""


@contextmanager
def converter_errors(format: str) -> Iterator[None]:
    """Context manager: what a converter cannot do, which converters raise as anything, is an `ExportError`.

    Raises:
        ExportError: with the converter's reason.
    """
    try:
        yield
    except Exception as error:
        raise ExportError(
            f"the converter of format {format} refuses the model: {first_line(error)}; try --format onnx"
        ) from error


@contextmanager
def runtime_errors(when: str) -> Iterator[None]:
    """Context manager: what a runtime cannot do, which runtimes raise as anything, is an `ExportError`.

    Args:
        when: what it was about to do, such as "as it is loaded".

    Raises:
        ExportError: with the runtime's reason.
    """
    try:
        yield
    except Exception as error:
        raise ExportError(f"the file fails {when}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, which may be long; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ExportGraph(nn.Module):
    """A model as it is deployed: `images` in; probabilities, logits or features out, in single precision.

    Args:
        model: takes normalized images; its dtype is that of the computation.
        output: what comes out.
        normalize: scales and normalizes images of bytes inside the graph; None if it takes normalized ones.
        features: computes these instead of what the model returns.
        temperature: divides logits before they become probabilities.
    """

    def __init__(
        self,
        model: VisionModel,
        output: Output,
        normalize: nn.Module | None = None,
        features: Features | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.output = output
        self.normalize = normalize
        self.features = features
        self.temperature = temperature
        self.dtype = next(model.parameters()).dtype

    def forward(self, images: Shaped[Tensor, "b c *size"]) -> Float[Tensor, "b ..."]:
        """Compute the output for a batch."""
        if self.normalize is not None:
            images = self.normalize(images)
        images = images.to(self.dtype)
        if self.features is None:
            x = self.model(images).float()
        else:
            x = compute_features(self.model, images, self.features).float()
        if self.output != "probabilities":
            return x
        # divided by 1, files would hold one operator more
        return (x if self.temperature == 1 else x / self.temperature).softmax(dim=1)


@dataclass(frozen=True)
class ExportJob:
    """What a format writes.

    Args:
        graph: the module, in eval mode and in the dtype of `precision`, unless the format lowers it.
        example: two images.
        precision: number format of the computation.
        metadata: JSON by name, to be stored inside the file where the format has a place for it.
        opset: ONNX operator set.
        quantization: whether int8 activations get their ranges from calibration or at run time.
        calibration: batches of images for static quantization.
        keep: layers that stay in floating point, by the names of their modules or of modules around them.
        size_step: what divides height and width, if these are dynamic.
    """

    graph: ExportGraph
    example: Shaped[Tensor, "2 c *size"]
    precision: Precision
    metadata: dict[str, str]
    opset: int = OLDEST_OPSET
    quantization: Quantization = "static"
    calibration: Sequence[Tensor] = ()
    keep: tuple[str, ...] = ()
    size_step: tuple[int, ...] | None = None

    def program(self, max_batch: int = MAX_BATCH) -> ExportedProgram:
        """Trace the graph with a dynamic batch."""
        return self.trace(self.graph, max_batch)

    def trace(self, graph: nn.Module, max_batch: int) -> ExportedProgram:
        """Trace a graph of the same input with a dynamic batch, and dynamic sizes if these are asked for."""
        shape: dict[int, Any] = {0: Dim("batch", min=1, max=max_batch)}
        for axis, step in enumerate(self.size_step or ()):
            shape[2 + axis] = step * Dim(("rows", "columns")[axis], min=1, max=MAX_PATCHES)
        # hooks, which take features between layers, and comparisons of open sizes are followed by running
        strict = self.graph.features in (None, "pooled") and self.size_step is None
        with torch.no_grad():
            return export(graph, (self.example,), dynamic_shapes=(shape,), strict=strict)


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
        extra: the extra of this package that installs `packages`.
        max_batch: the largest batch that its files take.
        quantizations: ways to int8 that it has.
        int8_packages: importable names that int8 needs in addition.
        int8_extra: the extra that installs those.
        takes_bytes: whether a graph may take bytes.
        merges_tokens: whether a graph may merge tokens.
        dynamic_size: whether height and width may be dynamic.
        lowers: whether `write` converts to half precision by itself, from a graph in single precision.
        manifest: what a package, which is a folder, has inside; "" for formats of files.
        platform: the only `sys.platform` that runs its files; "" if all do.
    """

    suffix: str
    write: Callable[[ExportJob, Path], dict[str, Any]]
    load: Callable[[Path, Precision], Runtime]
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    extra: str = "export"
    max_batch: int = MAX_BATCH
    quantizations: tuple[Quantization, ...] = ()
    int8_packages: tuple[str, ...] = ()
    int8_extra: str = ""
    takes_bytes: bool = True
    merges_tokens: bool = True
    dynamic_size: bool = False
    lowers: bool = False
    manifest: str = ""
    platform: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs its files."""
        return self.platform in ("", sys.platform)

    def check(self, name: str, precision: Precision) -> None:
        """Check that the format can be written here.

        Raises:
            ExportError: if a package is not installed, with the command that installs it; if the precision
                is not offered.
        """
        if precision not in self.precisions:
            raise ExportError(
                f"format {name} is written in {', '.join(self.precisions)}, not in {precision}: "
                f"{self.refusals[precision]}"
            )
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ExportError(f"format {name} needs {', '.join(missing)}: {install_command(self.extra)}")

    def check_quantization(self, name: str, quantization: Quantization) -> None:
        """Check that int8 can be written here.

        Raises:
            ExportError: if the format is not quantized so, or a package is not installed, with the command
                that installs it.
        """
        if quantization not in self.quantizations:
            raise ExportError(
                f"format {name} is quantized by calibration: take --quantization static, got {quantization}"
            )
        missing = [package for package in self.int8_packages if find_spec(package) is None]
        if missing:
            needs = f"{', '.join(missing)}: {install_command(self.int8_extra)}"
            raise ExportError(f"format {name} in int8 needs {needs}")
