"""EfficientViT computes what timm's computes; its attention against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import efficientvit_msra as theirs
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import randomise
from vit_pytorch import create_model, list_models
from vit_pytorch.efficientvit_msra import CascadedGroupAttention, EfficientViT
from vit_pytorch.layers.blocks import DropPath

# In double precision: images that are noise differ little once pooled, so that the batch norm before the
# classifier makes much of the rounding of single precision.
TOLERANCE = 1e-10
# Maps of 6, 3 and 2 cells.
OURS: dict[str, Any] = {
    "image_size": 96,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 2, 1),
    "heads": (2, 3, 2),
    "dim_key": 4,
    "kernel_sizes": (5, 3, 1),
    "window_size": 3,
}
THEIRS: dict[str, Any] = {
    "img_size": 96,
    "num_classes": 7,
    "embed_dim": (16, 24, 32),
    "depth": (1, 2, 1),
    "num_heads": (2, 3, 2),
    "key_dim": (4, 4, 4),
    "kernels": (5, 3, 1),
    "window_size": (3, 3, 3),
}
KEYS = (4, 6, 8)
SIDES = (2, 7, 1)
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "windows do not fill maps": ({"image_size": (130, 80)}, {"img_size": (130, 80)}),
    "keys": ({"dim_key": KEYS}, {"key_dim": KEYS}),
    "windows": ({"window_size": SIDES}, {"window_size": SIDES}),
}


FAMILY = Family(
    EfficientViT,
    theirs.EfficientVitMsra,
    OURS,
    THEIRS,
    OPTIONS,
    module="efficientvit_msra",
    named=[
        *(Named(name, {"depth": (1, 1, 1)}, {"depth": (1, 1, 1)}) for name in list_models("efficientvit_m*")),
        Named("efficientvit_m0"),
        Named("efficientvit_m0", size=(160, 250)),
    ],
    maps=("not square",),
    trained=("plain", "windows"),
    dtype=torch.float64,
    batch=16,
)


@torch.inference_mode()
def test_attention_in_plain_loops() -> None:
    """The second head sees its own channels and what the first one found; the last windows have zeros."""
    attention = CascadedGroupAttention(6, heads=2, dim_key=2, kernel_sizes=(1, 3), window_size=2)
    randomise(attention)
    x = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    table = attention.bias.table.view(2, 2, 2)
    padded = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
    want = torch.empty(4, 4, 6)
    for top in (0, 2):
        for left in (0, 2):
            window = padded[0, top : top + 2, left : left + 2]
            found: list[torch.Tensor] = []
            for number, (head, part) in enumerate(zip(attention.heads, window.split(3, dim=-1), strict=True)):
                part = part + found[-1] if found else part
                q, k, v = head.to_qkv(part).split((2, 2, 3), dim=-1)
                q = head.conv(q[None])[0]
                mixed = torch.empty(2, 2, 3)
                for row in range(2):
                    for column in range(2):
                        scores = (k * q[row, column]).sum(dim=-1) / 2**0.5
                        for y in range(2):
                            for z in range(2):
                                scores[y, z] += table[number, abs(row - y), abs(column - z)]
                        weights = scores.flatten().softmax(dim=0)
                        mixed[row, column] = weights @ v.flatten(0, 1)
                found.append(mixed)
            out = attention.to_out(torch.cat(found, dim=-1).relu()[None])[0]
            want[top : top + 2, left : left + 2] = out
    torch.testing.assert_close(attention(x)[0], want[:3], rtol=1e-4, atol=1e-5)


def test_windows_are_at_most_the_map_of_the_customary_input() -> None:
    """Its shorter side, in whole cells of 16 pixels, halved upwards."""
    model = EfficientViT(**{**OURS, "image_size": (100, 200), "window_size": 4})
    windows = [stage.blocks[0].attention.window for stage in model.stages]  # type: ignore[union-attr, index]
    assert windows == [(4, 4), (3, 3), (2, 2)]


@torch.inference_mode()
def test_new_models_pass_maps_on() -> None:
    """Branches of a block start as nothing."""
    stage = EfficientViT(**OURS).stages[0].eval()
    x = torch.randn(2, 6, 6, 16, generator=torch.Generator().manual_seed(0))
    assert stage(x).equal(x)


def test_stochastic_depth_rises_to_the_last_block() -> None:
    """The five branches of a block have one rate; what is between stages has none."""
    model = EfficientViT(**OURS, drop_path=0.3)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [[], pytest.approx([0.1] * 3 + [0.2] * 3), pytest.approx([0.3] * 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (1, 1)}, r"one for each stage, got \(16, 24, 32\), \(1, 1\) and \(2, 3, 2\)"),
        ({"heads": (2, 3, 3)}, "dim must be a multiple of heads, got dim=32 and heads=3"),
        ({"dim": (12, 24, 32)}, "dim of the first stage must be a multiple of 8, got 12"),
        ({"kernel_sizes": (5, 3)}, r"kernel_sizes must be odd, one for each of 3 heads, got \(5, 3\)"),
        ({"kernel_sizes": (5, 4, 3)}, r"kernel_sizes must be odd, .* got \(5, 4, 3\)"),
        ({"dim_key": (4, 4)}, r"dim_key must be one number or one for each of 3 stages, got \(4, 4\)"),
        ({"image_size": (15, 96)}, r"image_size must be at least 16, got \(15, 96\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientViT(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 64, "dim": (32, 64), "depth": (2, 2), "heads": (2, 2)}
    model = create_model("efficientvit_m0", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=64, epochs=10, goal=0.95) > 0.95
