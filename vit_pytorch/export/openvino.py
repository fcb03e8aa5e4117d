"""OpenVINO's intermediate representation: a `.xml` file, and its weights in a `.bin` file beside it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vit_pytorch.export import onnx
from vit_pytorch.export.job import ExportJob, Format, Precision, Runtime

METADATA = "vit_pytorch"


def write(job: ExportJob, file: Path) -> dict[str, Any]:
    """Convert the model's ONNX graph; `rt_info` holds the metadata.

    With fp16, weights are stored in half precision; the graph computes in what the runtime chooses.
    """
    import openvino

    with TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx.write_float(job, graph)
        model = openvino.convert_model(graph)
        for name, value in job.metadata.items():
            model.set_rt_info(value, [METADATA, name])
        openvino.save_model(model, file, compress_to_fp16=job.precision == "fp16")
    return {}


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


FORMAT = Format(
    suffix=".xml",
    write=write,
    load=load,
    precisions=("fp32", "fp16", "bf16"),
    packages=("openvino", "onnx", "onnxscript"),
    refusals={"int8": "take --format onnx, which OpenVINO reads, too"},
)
