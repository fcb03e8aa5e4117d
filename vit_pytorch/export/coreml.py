"""Core ML packages (.mlpackage) for Apple's devices: converted on any machine, run on a Mac only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vit_pytorch.export.job import ExportError, ExportJob, Format, Precision, Runtime, converter_errors
from vit_pytorch.export.layers import running_layers

# Core ML plans for the largest batch
MAX_BATCH = 16
# of a weight in half precision
TOLERANCE = 2e-3


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Convert a program; the package's metadata hold the metadata.

    Raises:
        ExportError: if a linear layer's weight is not in the package as it is in the model.
    """
    # bars of progress
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        # coremltools warns of versions of other packages that it was not tested with
        warnings.simplefilter("ignore")
        import coremltools

        precision = coremltools.precision
        with converter_errors("coreml"):
            converted = coremltools.convert(
                _without_aliases(job.program(MAX_BATCH).run_decompositions({})),
                convert_to="mlprogram",
                outputs=[coremltools.TensorType(name=job.graph.output)],
                compute_precision=precision.FLOAT16 if job.precision == "fp16" else precision.FLOAT32,
                minimum_deployment_target=coremltools.target.iOS17,
                skip_model_load=True,
            )
        found = _check_weights(job, converted._mil_program)
        _check_ends(job, converted.get_spec().description)
        for name, value in job.metadata.items():
            converted.user_defined_metadata[name] = value
        converted.save(str(file))
    return {"linear_layers_compared": found}


def load(file: Path, precision: Precision) -> Runtime:
    """Load a package; on a Mac."""
    import coremltools

    model = coremltools.models.MLModel(str(file))

    def run(images: Tensor) -> Tensor:
        parts = [model.predict({"images": part.numpy()}) for part in images.split(MAX_BATCH)]
        return torch.cat([torch.from_numpy(np.asarray(next(iter(part.values())))) for part in parts])

    return run


def _without_aliases(program: ExportedProgram) -> ExportedProgram:
    """Remove the nodes of a program that return what they take, which coremltools does not know."""
    for node in list(program.graph.nodes):
        if node.target == torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return program


def _check_weights(job: ExportJob, program: Any) -> int:
    """Check that the weight of every linear layer that runs is in a program, and return their number.

    Raises:
        ExportError: naming those that are not.
    """
    stored: dict[int, list[Any]] = {}
    for value in _constants(program.functions["main"]):
        stored.setdefault(value.size, []).append(value)
    modules = dict(job.graph.model.named_modules())
    layers = {name for name in running_layers(job) if isinstance(modules[name], nn.Linear)}
    lacking = []
    for name in sorted(layers):
        weight = modules[name].get_parameter("weight").detach().float().numpy()
        same = (_is_same(weight, value) for value in stored.get(weight.size, ()))
        if not any(same):
            lacking.append(name)
    if lacking:
        raise ExportError(
            f"the weights of {len(lacking)} of {len(layers)} linear layers are not in the converted program: "
            f"{', '.join(lacking[:5])}; take --format onnx"
        )
    return len(layers)


def _constants(block: Any) -> Iterator[Any]:
    """Yield the arrays that a block of operations stores."""
    for operation in block.operations:
        if operation.op_type == "const" and isinstance(operation.outputs[0].val, np.ndarray):
            yield operation.outputs[0].val
        for inner in operation.blocks:
            yield from _constants(inner)


def _is_same(weight: Any, value: Any) -> bool:
    """Return whether an array is a weight, or its transpose."""
    limit = TOLERANCE * float(np.abs(weight).max())
    return any(
        value.squeeze().shape == candidate.squeeze().shape
        and bool(np.abs(value.astype(np.float32).squeeze() - candidate.squeeze()).max() <= limit)
        for candidate in (weight, weight.T)
    )


def _check_ends(job: ExportJob, description: Any) -> None:
    """Check the names of a package's input and output, and the shape of an image.

    Raises:
        ExportError: with what they are.
    """
    (given,), (found,) = description.input, description.output
    shape = tuple(given.type.multiArrayType.shape)[1:]
    if (given.name, found.name, shape) != ("images", job.graph.output, tuple(job.example.shape[1:])):
        raise ExportError(
            f"the converted program takes {given.name} {shape} and returns {found.name}; take --format onnx"
        )


FORMAT = Format(
    suffix=".mlpackage",
    write=write,
    load=load,
    precisions=("fp32", "fp16"),
    packages=("coremltools",),
    extra="coreml",
    takes_bytes=False,
    merges_tokens=False,
    max_batch=MAX_BATCH,
    lowers=True,
    manifest="Manifest.json",
    platform="darwin",
    refusals={
        "bf16": "take --precision fp16",
        "int8": "Core ML's int8 cannot be verified but on a Mac: quantize the package there with coremltools",
    },
)
