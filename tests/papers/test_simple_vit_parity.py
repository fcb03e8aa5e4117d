"""SimpleViT computes what timm's ViT without a class token computes on sine and cosine positions."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import SimpleViT, ViT, create_model, load_pretrained
from vit_pytorch.pretrained import to_format

SMALL = {
    "image_size": (48, 64),
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 3,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 192,
}


def positions(rows: int, columns: int, dim: int) -> Tensor:
    """MoCo v3's table, an entry at a time."""
    quarter = dim // 4
    table = torch.empty(1, rows * columns, dim)
    for cell in range(rows * columns):
        y, x = divmod(cell, columns)
        for i in range(quarter):
            frequency = 10_000 ** -(i / (quarter - 1))
            waves = (math.sin, x), (math.cos, x), (math.sin, y), (math.cos, y)
            for part, (wave, place) in enumerate(waves):
                table[0, cell, part * quarter + i] = wave(place * frequency)
    return table


def build_reference(**arguments: object) -> VisionTransformer:
    reference = VisionTransformer(
        **{
            "class_token": False,
            "global_pool": "avg",
            "fc_norm": False,
            "act_layer": "gelu_tanh",
            **arguments,
        }
    )
    randomise(reference)
    rows, columns = reference.patch_embed.grid_size
    reference.pos_embed.data = positions(rows, columns, reference.embed_dim)
    return reference


@pytest.fixture
def reference() -> VisionTransformer:
    return build_reference(img_size=(48, 64), patch_size=8, num_classes=7, embed_dim=48, depth=3, num_heads=3)


@torch.inference_mode()
def test_logits_equal_timms(reference: VisionTransformer) -> None:
    model = SimpleViT(**SMALL).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 64)
    assert difference(model(x), reference(x)) < TOLERANCE
    assert difference(model.forward_features(x), reference.forward_features(x)) < TOLERANCE


@torch.inference_mode()
def test_named_model_equals_timms() -> None:
    reference = build_reference(patch_size=16, embed_dim=192, depth=12, num_heads=3)
    model = create_model("simple_vit_tiny_patch16_224").eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


def test_weights_go_back_to_timm(reference: VisionTransformer) -> None:
    model = SimpleViT(**SMALL)
    load_pretrained(model, reference.state_dict())
    written = to_format(model, "timm")
    assert written.keys() == reference.state_dict().keys()
    reference.load_state_dict(written)


def test_fixed_positions_of_another_grid_are_accepted(reference: VisionTransformer) -> None:
    finer = SimpleViT(**{**SMALL, "image_size": (96, 128)})
    report = load_pretrained(finer, reference.state_dict(), grid=(6, 8))
    assert not report.resized
    assert torch.allclose(finer.positions.table, positions(12, 16, 48), atol=1e-5)


@pytest.mark.parametrize("change", ["learned", "transposed"])
def test_other_positions_are_refused(reference: VisionTransformer, change: str) -> None:
    state = dict(reference.state_dict())
    if change == "learned":
        state["pos_embed"] = torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(0))
    else:
        state["pos_embed"] = positions(8, 6, 48)
    with pytest.raises(ValueError, match="not the model's fixed sine and cosine table: entries differ by"):
        load_pretrained(SimpleViT(**SMALL), state)


@torch.inference_mode()
def test_fixed_positions_load_as_learned_ones(reference: VisionTransformer) -> None:
    model = ViT(**SMALL, pool="mean", act="gelu_tanh").eval()
    load_pretrained(model, reference.state_dict(), grid="model")
    x = images(48, 64)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_fixed_positions_with_a_class_token_equal_timms() -> None:
    """MoCo v3's layout: the row of the class token is part of the table; here it is not even zero."""
    sizes = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 2, "num_heads": 3}
    reference = randomise(VisionTransformer(**sizes))
    reference.pos_embed.data[:, 1:] = positions(6, 6, 48)
    model = ViT(**{**SMALL, "image_size": 48, "depth": 2}, positions="sincos").eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE
