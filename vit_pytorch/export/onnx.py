"""ONNX, by PyTorch's exporter for `torch.export` programs; int8 by ONNX Runtime's quantizers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.export.job import OLDEST_OPSET, ExportError, ExportJob, Format, Precision, Runtime
from vit_pytorch.export.layers import check_quantized, kept_layers, quantization_notes, running_layers

STATIC, DYNAMIC = ("MatMul", "Gemm", "Conv"), ("MatMul", "Gemm")
NAMED_AXES = {0: "batch", 2: "height", 3: "width"}
# where the exporter notes the modules around a node, from the outermost inwards
SCOPES = "pkg.torch.onnx.name_scopes"


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Write a graph; its metadata properties hold the metadata.

    Raises:
        ExportError: if a layer that shall be quantized was not, or the exporter wrote another operator set.
    """
    if job.precision == "int8":
        return _write_int8(job, file)
    write_float(job, file)
    return {"opset": job.opset}


def check_opset(opset: int) -> None:
    """Check that files can have an operator set.

    Raises:
        ExportError: if not.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ExportError(f"opset must be in [{OLDEST_OPSET}, {newest}], got {opset}")


def write_float(job: ExportJob, file: Path) -> None:
    """Write a graph in floating point."""
    program = torch.onnx.export(
        job.program(),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=[job.graph.output],
        dynamic_shapes={"images": {0: "batch"} if job.size_step is None else NAMED_AXES},
        opset_version=job.opset,
    )
    assert program is not None, "the exporter returns a program"
    written = program.model.opset_imports[""]
    if written != job.opset:
        raise ExportError(f"the exporter wrote opset {written}, not {job.opset}: take --opset {written}")
    program.model.metadata_props.update(job.metadata)
    program.save(file)


def load(file: Path, precision: Precision) -> Runtime:
    """Load a file with ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return run


def _write_int8(job: ExportJob, file: Path) -> dict[str, Any]:
    """Quantize weights by channel, and the activations that meet them; what lies between stays as it is."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    static = job.quantization == "static"
    with TemporaryDirectory() as folder:
        plain, inferred = Path(folder) / "plain.onnx", Path(folder) / "inferred.onnx"
        write_float(job, plain)
        quant_pre_process(plain, inferred, skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(inferred)
        weights = find_weights(model, STATIC if static else DYNAMIC)
        layers = {layer for layer, _ in weights.values()}
        kept = kept_layers(job, layers)
        options: dict[str, Any] = {
            "op_types_to_quantize": list(STATIC if static else DYNAMIC),
            "per_channel": True,
            "weight_type": QuantType.QInt8,
            "nodes_to_exclude": [node for node, (layer, _) in weights.items() if layer in kept],
        }
        # attention's own products have no weights and stay in floating point
        extra = {"MatMulConstBOnly": True}
        if static:
            extra["OpTypesToExcludeOutputQuantization"] = ["MatMul", "Gemm"]  # type: ignore[assignment]
            quantize_static(
                inferred,
                file,
                _Calibration(job.calibration),
                activation_type=QuantType.QUInt8,
                extra_options=extra,
                **options,
            )
        else:
            quantize_dynamic(inferred, file, extra_options=extra, **options)
    quantized = onnx.load(file)
    _check_layers(job, weights, set(_quantized_weights(quantized)), kept)
    onnx.helper.set_model_props(quantized, job.metadata)
    onnx.save(quantized, file)
    floating = kept | (running_layers(job) - layers)
    return {"opset": job.opset, **quantization_notes(job, layers - kept, floating)}


class _Calibration:
    """Hands batches to ONNX Runtime's calibration, which asks for `get_next` until there is none."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch."""
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def find_weights(model: Any, types: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return layer and weight of every node that multiplies by a stored weight, by the node's name."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: (_layer(node), node.input[1])
        for node in model.graph.node
        if node.op_type in types and node.input[1] in stored
    }


def _layer(node: Any) -> str:
    """Name the module that a node belongs to; the node itself where the exporter does not say.

    The name of its weight counts first: a convolution that a batch norm was folded into stands in the norm's
    place.
    """
    weight = str(node.input[1])
    if weight.startswith("model.") and weight.endswith(".weight"):
        return weight.removeprefix("model.").removesuffix(".weight")
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is None:
        return node.name
    # outermost first: "", "model", "model.blocks", …; the last one is the node
    return str(ast.literal_eval(scopes)[-2]).removeprefix("model.")


def _quantized_weights(model: Any) -> Iterator[str]:
    """Name the weights that are multiplied as integers, or between dequantizations that a runtime fuses."""
    origin = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            yield _plain_name(node.input[1])
        elif node.op_type in STATIC:
            sources = [origin.get(name) for name in node.input[:2]]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                yield _plain_name(sources[1].input[0])  # type: ignore[union-attr]


def _plain_name(name: str) -> str:
    """Return the name of a weight before it was quantized, and transposed for that."""
    return name.removesuffix("_quantized").removesuffix("_Transposed")


def _check_layers(
    job: ExportJob, weights: dict[str, tuple[str, str]], quantized: set[str], kept: set[str]
) -> None:
    """Check that every layer is quantized that shall be: all but those kept and, at run time, convolutions.

    Raises:
        ExportError: naming those that are not.
    """
    modules = dict(job.graph.model.named_modules())
    wanted = (running_layers(job) | {layer for layer, _ in weights.values()}) - kept
    if job.quantization == "dynamic":
        wanted = {layer for layer in wanted if isinstance(modules.get(layer), nn.Linear)}
    check_quantized(wanted, (layer for layer, weight in weights.values() if weight in quantized))


FORMAT = Format(
    suffix=".onnx",
    write=write,
    load=load,
    precisions=("fp32", "fp16", "int8"),
    packages=("onnx", "onnxscript", "onnxruntime"),
    quantizations=("static", "dynamic"),
    dynamic_size=True,
    refusals={"bf16": "ONNX Runtime has no bf16 kernels for processors; take --format pt2 or openvino"},
)
