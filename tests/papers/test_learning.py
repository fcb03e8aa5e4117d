"""Every architecture learns: a tiny one passes 90 % on the digits within moments."""

import pytest
import torch

from tests.papers.learning import accuracy_on_digits
from vit_pytorch import create_model

SMALL = {"channels": 1, "num_classes": 10}
SIZE = {"image_size": 20}
PLAIN = {"patch_size": 4, "dim": 64, "depth": 3, "heads": 4, "dim_head": 16, "mlp_dim": 128}
CASES = {
    "vit_tiny_patch16_224": PLAIN,
    "simple_vit_tiny_patch16_224": PLAIN,
    "cct_7_3x2_32": {"img_size": 16, "embedding_dim": 64, "num_layers": 2},
    "sl_vit_patch4_32": PLAIN,
}
EPOCHS = {"cct_7_3x2_32": 12}


@pytest.mark.parametrize("name", CASES)
def test_learns_the_digits(name):
    torch.manual_seed(0)
    size = {} if "img_size" in CASES[name] else SIZE
    model = create_model(name, **{**SMALL, **size, **CASES[name]})
    assert accuracy_on_digits(model, size=model.image_size[0], epochs=EPOCHS.get(name, 20)) > 0.9
