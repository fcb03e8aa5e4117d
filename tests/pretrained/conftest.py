"""What the tests of loading share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.papers.reference import randomise
from vit_pytorch import ViT

SMALL = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 2,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 96,
}


def build(**changes: Any) -> ViT:
    return ViT(**{**SMALL, **changes})


@pytest.fixture
def model() -> ViT:
    """A small ViT whose weights are all drawn at random."""
    model = build()
    randomise(model, seed=3)
    return model


class Payload:
    """Leaves a file behind when it is unpickled carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)
