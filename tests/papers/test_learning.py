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
    "cait_xxs24_224": {"patch_size": 5, "dim": 64, "depth": 2, "cls_depth": 2, "heads": 4, "mlp_dim": 128},
    "crossvit_tiny_240": {
        "image_size": 20,
        "lg_image_size": 24,
        "depth": 1,
        "sm_patch_size": 5,
        "sm_dim": 48,
        "sm_enc_heads": 4,
        "sm_enc_mlp_dim": 96,
        "lg_patch_size": 8,
        "lg_dim": 64,
        "lg_enc_depth": 2,
        "lg_enc_heads": 4,
        "lg_enc_mlp_dim": 128,
        "cross_attn_heads": 4,
    },
}
EPOCHS = {"cait_xxs24_224": 15, "crossvit_tiny_240": 15}


@pytest.mark.parametrize("name", CASES)
def test_learns_the_digits(name):
    torch.manual_seed(0)
    overrides = {**SMALL, **CASES[name]}
    model = create_model(name, **overrides)
    assert accuracy_on_digits(model, size=overrides["image_size"], epochs=EPOCHS.get(name, 20)) > 0.9
