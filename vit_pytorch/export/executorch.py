"""ExecuTorch programs (.pte) for phones and boards, with XNNPACK's kernels; int8 by PT2E."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from vit_pytorch.export.job import ExportError, ExportJob, Format, Precision, Runtime, converter_errors
from vit_pytorch.export.layers import check_quantized, kept_layers, quantization_notes, running_layers

# the runtime reserves memory for the largest batch, whatever batch comes
MAX_BATCH = 16
PRODUCTS = {
    torch.ops.aten.linear.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
}


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Lower a program to XNNPACK; methods named as the metadata return it as JSON.

    Raises:
        ExportError: if a layer that shall be quantized was not.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

        program = job.program(MAX_BATCH)
        notes: dict[str, Any] = {}
        if job.precision == "int8":
            program, notes = _quantize(job, program)
        with converter_errors("executorch"):
            lowered = to_edge_transform_and_lower(
                program,
                partitioner=[XnnpackPartitioner()],
                # its check of dtypes runs the graph on symbolic shapes, and fixes the batch at the example's
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods=dict(job.metadata),
            )
        left = [node for node in lowered.exported_program().graph.nodes if "per_channel" in str(node.target)]
        if left:
            raise ExportError(
                f"{len(left)} quantized layers have no kernel of XNNPACK: {', '.join(map(str, left[:5]))}; "
                "take --precision fp32 or --format onnx"
            )
        config = ExecutorchBackendConfig(sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass())
        bounds = lowered.exported_program().range_constraints.values()
        if not any(bound.lower < bound.upper for bound in bounds):
            raise ExportError("format executorch fixes the batch of this model: try --format onnx")
        with converter_errors("executorch"):
            finished = lowered.to_executorch(config)
        file.write_bytes(finished.buffer)
    # comparisons of sizes, made while the graph is lowered, may leave a smaller bound than was asked for
    plan = finished.executorch_program.execution_plan[0]
    notes["max_batch"] = plan.values[plan.inputs[0]].val.sizes[0]
    return {**notes, "delegates": _count_delegates(lowered.exported_program())}


def load(file: Path, precision: Precision) -> Runtime:
    """Load a program with ExecuTorch's runtime."""
    with quiet():
        from executorch import runtime

        method = runtime.Runtime.get().load_program(file).load_method("forward")
    assert method is not None, "every program has the method"
    largest = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(images: Tensor) -> Tensor:
        # outputs lie in the program's memory, which the next call overwrites
        return torch.cat([method.execute([part.contiguous()])[0].clone() for part in images.split(largest)])

    return run


def _quantize(job: ExportJob, program: ExportedProgram) -> tuple[ExportedProgram, dict[str, Any]]:
    """Quantize weights by channel, and the activations that meet them; what lies between stays as it is."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    layers = running_layers(job)
    kept = kept_layers(job, layers)
    wanted = layers - kept
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    quantizer.set_filter_function(_is_product_of(wanted))
    # by its type a graph has to be a GraphModule, which the module of a program is
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    with torch.no_grad():
        for batch in job.calibration:
            prepared(batch)
    converted = convert_pt2e(prepared)
    check_quantized(wanted, _quantized(converted))
    return job.trace(converted, MAX_BATCH), quantization_notes(job, wanted, kept)


def _is_product_of(wanted: set[str]) -> Callable[[fx.Node], bool]:
    """Return what chooses the nodes to quantize: those of layers, and their stored weights."""
    return lambda node: node.op == "get_attr" or (node.target in PRODUCTS and _layer(node) in wanted)


def _layer(node: fx.Node) -> str:
    """Name the module that a node belongs to, as the model names it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0].removeprefix("model.") if stack else ""


def _quantized(graph: fx.GraphModule) -> Iterator[str]:
    """Name the layers whose images and weights are both dequantized right before the product."""
    for node in graph.graph.nodes:
        if node.target in PRODUCTS:
            sources = [str(getattr(source, "target", "")) for source in node.args[:2]]
            if "dequantize_per_tensor" in sources[0] and "dequantize_per_channel" in sources[1]:
                yield _layer(node)


def _count_delegates(program: ExportedProgram) -> int:
    """Count the parts of a graph that XNNPACK computes."""
    return sum("call_delegate" in str(node.target) for node in program.graph.nodes)


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager: no warnings of ExecuTorch about its own use of Python's and PyTorch's interfaces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "This API is experimental")
        yield


FORMAT = Format(
    suffix=".pte",
    write=write,
    load=load,
    precisions=("fp32", "int8"),
    packages=("executorch", "torchao"),
    extra="executorch",
    quantizations=("static",),
    # its kernels sort no tokens
    merges_tokens=False,
    max_batch=MAX_BATCH,
    refusals={
        "fp16": "take --precision fp32 or int8",
        "bf16": "take --precision fp32 or int8",
    },
)
