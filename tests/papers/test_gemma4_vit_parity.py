"""Gemma 4's vision tower computes what timm's and transformers' compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.gemma4_vit import Gemma4ClippableLinear, Gemma4VitClassifier
from torch import nn
from transformers import Gemma4VisionConfig, Gemma4VisionModel

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.gemma4_vit import Gemma4ViT
from vit_pytorch.pretrained import to_format

OURS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 2,
    "heads": 3,
    "dim_head": 20,
    "mlp_dim": 72,
    "positions": 12,
}
THEIRS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "head_dim": 20,
    "intermediate_size": 72,
    "position_embedding_size": 12,
}


def limit(model: object, reference: nn.Module) -> None:
    """Give timm's limits values that matter, each its own."""
    generator = torch.Generator().manual_seed(3)
    for part in reference.modules():
        if isinstance(part, Gemma4ClippableLinear) and part.use_clipped:
            for low in (part.input_min, part.output_min):
                low.uniform_(-1.5, -0.5, generator=generator)
            for high in (part.input_max, part.output_max):
                high.uniform_(0.5, 1.5, generator=generator)


SHALLOW = {"depth": 1, "num_classes": 7}
SMALL = {"dim": 48, "heads": 3, "dim_head": 16, "mlp_dim": 72, "positions": 8, "image_size": 96}
THEIR_SMALL = {
    "embed_dim": 48,
    "num_heads": 3,
    "head_dim": 16,
    "intermediate_size": 72,
    "position_embedding_size": 8,
}
FAMILY = Family(
    Gemma4ViT,
    Gemma4VitClassifier,
    OURS,
    THEIRS,
    options={
        "plain": ({}, {"standardize": True}),
        "not square": ({"image_size": (24, 64)}, {"img_size": (24, 64), "standardize": True}),
        "clipped": ({"clipped": True}, {"use_clipped_linears": True}),
    },
    module=None,
    named=[
        Named(f"gemma4_vit_{size}", {**SHALLOW, **SMALL}, {**SHALLOW, **THEIR_SMALL}, (64, 96))
        for size in ("167m", "570m")
    ],
    maps=("not square", "clipped"),
    trained=("plain", "clipped"),
    prepare=limit,
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (16, 24), (96, 40)])
@pytest.mark.parametrize("option", ["plain", "clipped"])
def test_images_of_any_size(option: str, size: tuple[int, int]) -> None:
    """Up to as many rows and columns as there are positions."""
    model, other = FAMILY.pair(option)
    x = images(*size)
    assert difference(model(x), other(x)) < TOLERANCE


@torch.inference_mode()
def test_limits_count() -> None:
    """And without limits, timm's infinite ones are read."""
    model, _ = FAMILY.pair("clipped")
    free = Gemma4VitClassifier(**THEIRS, use_clipped_linears=True)
    free.load_state_dict(randomise(Gemma4VitClassifier(**THEIRS)).state_dict(), strict=False)
    x = images(32, 32)
    before = model(x)
    load_pretrained(model, free.state_dict())
    assert difference(model(x), free.eval()(x)) < TOLERANCE
    assert difference(model(x), before) > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("clipped", [False, True])
def test_transformers(clipped: bool) -> None:
    """Groups of 2 x 2 tokens, of which it gives the mean, scaled."""
    config = Gemma4VisionConfig(
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=20,
        pooling_kernel_size=2,
        patch_size=8,
        position_embedding_size=12,
        use_clipped_linears=clipped,
        standardize=not clipped,
    )
    other = randomise(Gemma4VisionModel(config))
    for name, buffer in other.named_buffers():
        if name.endswith(("_min", "_max", "std_bias", "std_scale")):
            buffer.fill_(-0.8 if name.endswith("_min") else 0.0 if name.endswith("bias") else 1.0)
    model = Gemma4ViT(**{**OURS, "num_classes": 0}, clipped=clipped).eval()
    state = {f"model.vision_tower.{name}": tensor for name, tensor in other.state_dict().items()}
    report = load_pretrained(model, {**state, "model.language_model.norm.weight": torch.ones(3)})
    assert report.format == "transformers"
    x = images(32, 48)
    patches = x.unflatten(3, (6, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(6)).flip(-1).expand(2, -1, -1)
    want = other(patches, places).last_hidden_state
    tokens = model.forward_features(x).unflatten(1, (2, 2, 3, 2)).mean(dim=(2, 4)).flatten(0, 2)
    assert difference(tokens * 48**0.5, want) < TOLERANCE * want.abs().max()
    again = Gemma4ViT(**{**OURS, "num_classes": 0}, clipped=clipped).eval()
    load_pretrained(again, to_format(model, "transformers"))
    assert again(x).equal(model(x))


def test_positions_end() -> None:
    model = Gemma4ViT(**OURS)
    with pytest.raises(ValueError, match=r"must be at most \(12, 12\), got \(4, 13\)"):
        model(images(32, 104))


def test_a_head_has_channels_for_both_axes() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 18"):
        Gemma4ViT(**{**OURS, "dim_head": 18})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {**OURS, "patch_size": 4, "num_classes": 10, "image_size": 16, "depth": 1}
    model = create_model("gemma4_vit_570m", channels=1, **sizes)
    assert accuracy_on_digits(model, size=16, epochs=6) > 0.8
