"""Reading a fixture of `tests/golden/`, and holding a model against it: official weights, input, output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference
from vit_pytorch import load_pretrained
from vit_pytorch.base import VisionModel
from vit_pytorch.pretrained import to_format

__all__ = ["GOLDEN", "as_golden", "assert_goes_back", "assert_golden", "read_golden"]

GOLDEN = Path(__file__).parents[1] / "golden"


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Give a reference's arguments, its weights, and the other tensors, such as input and output."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): t for key, t in tensors.items() if key.startswith("weights/")}
    return config, weights, {key: t for key, t in tensors.items() if not key.startswith("weights/")}


def as_golden(model: VisionModel, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put a fixture's weights in a model, all of them; give these and the other tensors."""
    _, weights, tensors = read_golden(name)
    load_pretrained(model.eval(), weights, strict=True)
    return weights, tensors


def assert_golden(model: VisionModel, tensors: dict[str, Tensor]) -> None:
    """Hold logits and pooled embedding against a fixture, in inference and, the logits, in training.

    With gradients, another kernel may attend, and biases are computed anew.
    """
    with torch.inference_mode():
        features = model.forward_features(tensors["input"])
        assert difference(model.forward_head(features), tensors["output"]) < TOLERANCE
        pooled = model.forward_head(features, pre_logits=True)
        assert difference(pooled, tensors["features"]) < TOLERANCE
    assert difference(model.train()(tensors["input"]), tensors["output"]) < TOLERANCE


def assert_goes_back(model: VisionModel, form: str, weights: dict[str, Tensor]) -> None:
    """Hold that a model, written in a format, gives these weights to the bit, and no others."""
    written = to_format(model, form)
    assert written.keys() == weights.keys()
    assert [name for name, tensor in weights.items() if not written[name].equal(tensor)] == []
