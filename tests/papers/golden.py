"""Reading a fixture of `tests/golden/`: official weights, input and output of a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Give the reference's arguments, its weights, and the other tensors, such as input and output."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights/"): t for key, t in tensors.items() if key.startswith("weights/")}
    return config, weights, {key: t for key, t in tensors.items() if not key.startswith("weights/")}
