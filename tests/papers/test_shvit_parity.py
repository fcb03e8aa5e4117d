"""SHViT computes what timm's computes; its attention against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.shvit import SHViT as TimmSHViT

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import list_models
from vit_pytorch.layers.attention import FusedAttention
from vit_pytorch.shvit import SHViT, SingleHeadAttention

# Maps of 6, 3 and 2 cells; gates of 8 and 16 channels, of 16 and 20.
OURS: dict[str, Any] = {
    "image_size": 96,
    "num_classes": 7,
    "dim": (16, 20, 24),
    "depth": (1, 2, 1),
    "attending_dim": (0, 6, 7),
    "dim_key": 4,
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dim": (16, 20, 24),
    "depth": (1, 2, 1),
    "partial_dim": (5, 6, 7),
    "qk_dim": (4, 4, 4),
    "types": ("i", "s", "s"),
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 160)}, {}),
    "odd maps": ({"image_size": (75, 109)}, {}),
    "all stages attend": ({"attending_dim": (5, 6, 7)}, {"types": ("s", "s", "s")}),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
SHALLOW = {"depth": (1, 1, 1)}
FAMILY = Family(
    SHViT,
    TimmSHViT,
    OURS,
    THEIRS,
    OPTIONS,
    module="shvit",
    named=[Named("shvit_s1"), *(Named(name, SHALLOW, SHALLOW) for name in list_models("shvit*"))],
    maps=("not square", "odd maps"),
    trained=("plain",),
    batch=16,
)


@torch.inference_mode()
def test_a_part_of_the_channels_attends() -> None:
    """In loops over cells: the norm is of the whole part, and batch norms follow the linear layers."""
    attention = randomise(SingleHeadAttention(7, 4, dim_key=3, kernel=FusedAttention))
    x = torch.randn(1, 2, 3, 7, generator=torch.Generator().manual_seed(0))
    part = x[..., :4]
    normed = (part - part.mean()) / (part.var(unbiased=False) + 1e-5).sqrt()
    q, k, v = attention.to_qkv(normed * attention.norm.weight + attention.norm.bias).split((3, 3, 4), dim=-1)
    found = attention(x)
    for y in range(2):
        for z in range(3):
            scores = torch.stack([q[0, y, z] @ k[0, a, b] for a in range(2) for b in range(3)])
            values = torch.stack([v[0, a, b] for a in range(2) for b in range(3)])
            mixed = (scores * 3**-0.5).softmax(dim=0) @ values
            wanted = attention.to_out(torch.cat([mixed, x[0, y, z, 4:]]).relu()[None])[0]
            assert difference(found[0, y, z], wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attending_dim": (0, 20, 7)}, r"below dim \(16, 20, 24\), got \(0, 20, 7\)"),
        ({"dim": (12, 20, 24)}, "dim of the first stage must be a multiple of 8, got 12"),
        ({"depth": (1, 1)}, "dim must be one number or one for each of 2 stages"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SHViT(**{**OURS, **options})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": (64, 96), "depth": (1, 1), "attending_dim": (0, 32)}
    model = SHViT(image_size=48, channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=48, epochs=8) > 0.9
