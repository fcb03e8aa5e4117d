"""Visformer computes what timm's computes; its convolutions against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import visformer as theirs
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.visformer import GroupedBottleneck, Visformer

# Maps of 8, 4 and 2 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 16,
    "depth": (1, 2, 1),
    "heads": 2,
    "stem_dim": 8,
    "mlp_ratio": 3,
    "conv_groups": 4,
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "init_channels": 8,
    "embed_dim": 32,
    "depth": (1, 2, 1),
    "num_heads": 2,
    "mlp_ratio": 3,
    "group": 4,
    "attn_stage": "011",
    "spatial_conv": "100",
    "norm_layer": nn.BatchNorm2d,
    "embed_norm": nn.BatchNorm2d,
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "more groups": ({"conv_groups": 8, "stem_dim": 12}, {"group": 8, "init_channels": 12}),
    "heads": ({"heads": 4, "mlp_ratio": 1.5}, {"num_heads": 4, "mlp_ratio": 1.5}),
}
FAMILY = Family(
    Visformer,
    theirs.Visformer,
    OURS,
    THEIRS,
    OPTIONS,
    module="visformer",
    named=[
        *(Named(name, {"depth": (1, 1, 1)}, {"depth": (1, 1, 1)}) for name in list_models("visformer_*")),
        Named("visformer_tiny"),
    ],
    maps=("not square",),
    norms=[(False, False), (True, True)],
    trained=("plain",),
    batch=8,
)


@torch.inference_mode()
def test_smaller_images_have_the_positions_of_their_places() -> None:
    """A model of that size, with corners of the tables, computes the same."""
    model, reference = FAMILY.build("plain")
    load_pretrained(model, reference.state_dict())
    small = Visformer(**{**OURS, "image_size": (32, 64)}).eval()
    state = model.state_dict()
    for name in [name for name in state if name.endswith("positions.table")]:
        side = int(state[name].shape[1] ** 0.5)
        state[name] = state[name].unflatten(1, (side, side))[:, : side // 2].flatten(1, 2)
    small.load_state_dict(state)
    x = images(32, 64)
    assert difference(model(x), small(x)) < TOLERANCE
    with pytest.raises(ValueError, match=r"image size must be at most \(64, 64\), got \(64, 96\)"):
        model(images(64, 96))
    with pytest.raises(ValueError, match=r"image size must be a multiple of \(32, 32\), got \(32, 48\)"):
        model(images(32, 48))


@torch.inference_mode()
def test_convolution_in_groups_in_plain_loops() -> None:
    """A hidden channel sees those of its group, in the cells around."""
    bottleneck = randomise(GroupedBottleneck(3, 4, groups=2))
    conv = bottleneck.conv.layers[0]  # type: ignore[union-attr, index]
    x = torch.randn(1, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    hidden = nn.functional.gelu(x @ bottleneck.to_hidden.weight.T)  # type: ignore[union-attr, operator]
    padded = nn.functional.pad(hidden, (0, 0, 1, 1, 1, 1))
    found = bottleneck(x)
    for row in range(3):
        for column in range(4):
            around = padded[0, row : row + 3, column : column + 3]
            mixed = torch.stack(
                [
                    (
                        around[..., 2 * (out // 2) : 2 * (out // 2) + 2].permute(2, 0, 1) * conv.weight[out]
                    ).sum()
                    for out in range(4)
                ]
            )
            want = bottleneck.to_out.weight @ nn.functional.gelu(mixed)  # type: ignore[union-attr, operator]
            torch.testing.assert_close(found[0, row, column], want, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_rises_to_the_last_block() -> None:
    model = Visformer(**OURS, drop_path=0.3)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [[], pytest.approx([0.1, 0.2]), pytest.approx([0.3])]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": (16, 24)}, r"dim must be one number or one for each of 3 stages, got \(16, 24\)"),
        ({"heads": 3}, "dim must be a multiple of heads, got dim=32 and heads=3"),
        ({"conv_groups": 5}, "hidden channels must be a multiple of conv_groups, got 32 and 5"),
        ({"image_size": 48}, r"image size must be a multiple of \(32, 32\), got \(48, 48\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Visformer(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 32, "dim": (32, 64), "depth": (2, 2), "heads": 4, "stem_dim": 16}
    model = create_model("visformer_tiny", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
