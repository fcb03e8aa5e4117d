"""OpenVINO's intermediate representation: a `.xml` file, and its weights in a `.bin` file beside it.

Int8 by NNCF.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vit_pytorch.export import onnx
from vit_pytorch.export.job import ExportJob, Format, Precision, Runtime
from vit_pytorch.export.layers import check_quantized, kept_layers, quantization_notes, running_layers

METADATA = "vit_pytorch"
PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
# what may stand between a product and the quantization of what it multiplies
MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Convert", "Multiply", "Subtract")


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Convert the model's ONNX graph; `rt_info` holds the metadata.

    With fp16, weights are stored in half precision; the graph computes in what the runtime chooses.

    Raises:
        ExportError: if a layer that shall be quantized was not.
    """
    import openvino

    notes: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx.write_float(job, graph)
        model = openvino.convert_model(graph)
        if job.precision == "int8":
            model, notes = _quantize(job, model, graph)
        for name, value in job.metadata.items():
            model.set_rt_info(value, [METADATA, name])
        openvino.save_model(model, file, compress_to_fp16=job.precision == "fp16")
    return notes


def load(file: Path, precision: Precision) -> Runtime:
    """Compile a file for the processor.

    By itself OpenVINO computes in bf16 where the processor can, whatever the file holds: the hint keeps what
    was asked for.
    """
    import openvino

    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(file, "CPU", config)

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compiled({"images": images.numpy()})[0].copy())

    return run


def _quantize(job: ExportJob, model: Any, graph: Path) -> tuple[Any, dict[str, Any]]:
    """Quantize weights by channel, and the activations that meet them; what lies between stays as it is."""
    import onnx as onnx_package

    weights = onnx.find_weights(onnx_package.load(graph), onnx.STATIC)
    layers = {name: layer for name, (layer, _) in weights.items()}
    # converted nodes keep their names, with a suffix where a bias was split off
    products = {
        node.get_friendly_name(): layers[name]
        for node in model.get_ops()
        if node.get_type_name() in PRODUCTS
        and (name := node.get_friendly_name().removesuffix("/WithoutBiases")) in layers
    }
    running = running_layers(job)
    kept = kept_layers(job, running)
    wanted = running - kept
    chosen = {name for name, layer in products.items() if layer in wanted}
    check_quantized(wanted, (products[name] for name in chosen))
    # bars of progress
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        # of NNCF about its own use of other packages
        warnings.simplefilter("ignore")
        import nncf

        nncf.set_log_level("ERROR")
        quantized = nncf.quantize(
            model,
            nncf.Dataset([{"images": batch.numpy()} for batch in job.calibration]),
            subset_size=len(job.calibration),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=[*_others(model, chosen)], validate=False),
        )
    check_quantized(wanted, (products[name] for name in _quantized(quantized) if name in products))
    return quantized, quantization_notes(job, wanted, kept)


def _others(model: Any, chosen: set[str]) -> Iterator[str]:
    """Name the operations that are not to be quantized."""
    for node in model.get_ops():
        stored = node.get_type_name() in ("Constant", "Parameter", "Result")
        if not stored and node.get_friendly_name() not in chosen:
            yield node.get_friendly_name()


def _quantized(model: Any) -> Iterator[str]:
    """Name the products of quantized activations with weights that are stored as integers."""
    for node in model.get_ops():
        if node.get_type_name() in PRODUCTS:
            images, weight = (_origin(node, i) for i in range(2))
            if images.get_type_name() == "FakeQuantize" and (
                weight.get_type_name() == "FakeQuantize"
                or weight.get_output_element_type(0).get_type_name() in ("i8", "u8")
            ):
                yield node.get_friendly_name()


def _origin(node: Any, index: int) -> Any:
    """Return the node that an input comes from, before all that only moves or scales it."""
    node = node.input_value(index).get_node()
    while node.get_type_name() in MOVES:
        node = node.input_value(0).get_node()
    return node


FORMAT = Format(
    suffix=".xml",
    write=write,
    load=load,
    precisions=("fp32", "fp16", "bf16", "int8"),
    packages=("openvino", "onnx", "onnxscript"),
    quantizations=("static",),
    int8_packages=("nncf",),
    int8_extra="nncf",
)
