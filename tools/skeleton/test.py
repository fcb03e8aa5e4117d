"""$kind computes what its reference computes. FILL: which, and what properties are tested beside it."""

from __future__ import annotations

import pytest
import torch

from tests.papers.learning import accuracy_on_digits
from vit_pytorch import create_model


def test_named_models_equal_the_reference() -> None:
    pytest.fail("FILL: compare logits and parameters of each named model; if timm has it, by a row: tests/papers/family.py")


def test_what_the_paper_changes() -> None:
    pytest.fail("FILL: hold the paper's own equation against an independent computation")


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    # FILL: sizes and epochs with which it learns within seconds.
    sizes = {"image_size": 20, "patch_size": 4, "dim": 64, "depth": 3, "heads": 4, "dim_head": 16, "mlp_dim": 128}
    model = create_model("${name}_tiny_patch16_224", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=20, epochs=20, goal=0.9) > 0.9
