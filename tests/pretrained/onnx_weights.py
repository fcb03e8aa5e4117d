"""Weights of a transformer inside an ONNX file, under the names that they were exported from."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor


def read_onnx(path: Path) -> tuple[onnx.ModelProto, dict[str, Tensor]]:
    """Read a model and the state dict of what was exported.

    Matrices of linear layers lose their names in an export; the bias that is added behind gives it back.
    """
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = {name: torch.from_numpy(array.copy()) for name, array in constants.items() if "::" not in name}
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants:
            continue
        (bias,) = (name for name in readers[node.output[0]].input if name in state)
        weight = torch.from_numpy(constants[node.input[1]].copy())
        state[bias.removesuffix("bias") + "weight"] = weight.T.contiguous()
    return model, state


def embedded_positions(model: onnx.ModelProto) -> Tensor:
    """Find the position embeddings, which an export takes apart: the class token's, and the patches'."""
    constants = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
        if len(tensor.dims) == 3 and "::" in tensor.name
    }
    first, rest = sorted(constants.values(), key=lambda table: table.shape[1])
    return torch.cat([first, rest], dim=1)


def output_of(model: onnx.ModelProto, parameter: str) -> str:
    """Name the value that the operation which reads a parameter gives."""
    (node,) = (node for node in model.graph.node if parameter in node.input)
    return node.output[0]
