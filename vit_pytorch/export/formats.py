"""The formats by name, and what those need that are not written here."""

from __future__ import annotations

from vit_pytorch.export import aoti, coreml, executorch, onnx, openvino, pt2, torchscript
from vit_pytorch.export.job import ExportError, Format

FORMATS: dict[str, Format] = {
    "onnx": onnx.FORMAT,
    "pt2": pt2.FORMAT,
    "openvino": openvino.FORMAT,
    "torchscript": torchscript.FORMAT,
    "aoti": aoti.FORMAT,
    "executorch": executorch.FORMAT,
    "coreml": coreml.FORMAT,
}
# what the formats need that cannot be loaded and verified on any Linux machine with a processor
ELSEWHERE = {
    "tensorrt": "export --format onnx and build an engine with trtexec --onnx=FILE on the GPU that runs it",
}


def find_format(name: str) -> Format:
    """Look a format up.

    Raises:
        ExportError: if there is none of that name; for formats that other machines must write, says how.
    """
    if name in ELSEWHERE:
        raise ExportError(f"format {name} is not written here: {ELSEWHERE[name]}")
    if name not in FORMATS:
        raise ExportError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
