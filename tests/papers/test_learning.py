"""Every architecture learns: a tiny one passes 90 % on the digits within moments."""

import pytest
import torch

from tests.papers.learning import accuracy_on_digits
from vit_pytorch import create_model

SMALL = {"channels": 1, "num_classes": 10, "image_size": 20}
PLAIN = {"patch_size": 4, "dim": 64, "depth": 3, "heads": 4, "dim_head": 16, "mlp_dim": 128}
CASES = {
    "vit_tiny_patch16_224": PLAIN,
    "simple_vit_tiny_patch16_224": PLAIN,
    "navit_tiny_patch16": PLAIN,
}
EPOCHS: dict[str, int] = {"navit_tiny_patch16": 15}


@pytest.mark.parametrize("name", CASES)
def test_learns_the_digits(name):
    torch.manual_seed(0)
    overrides = {**SMALL, **CASES[name]}
    model = create_model(name, **overrides)
    assert accuracy_on_digits(model, size=overrides["image_size"], epochs=EPOCHS.get(name, 20)) > 0.9
