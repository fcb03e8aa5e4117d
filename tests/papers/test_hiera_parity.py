"""Hiera computes what timm's and transformers' compute; pooling and mask units against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.hiera import Hiera as TimmHiera
from timm.models.hiera import checkpoint_filter_fn
from torch import Tensor, nn
from transformers import HieraConfig, HieraForImageClassification

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import load_pretrained
from vit_pytorch.hiera import Hiera, MaskUnitAttention
from vit_pytorch.pretrained import to_format

OURS: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": 16, "depth": (1, 2, 2, 1), "heads": 1}
THEIRS: dict[str, Any] = {
    "img_size": (64, 64),
    "num_classes": 7,
    "embed_dim": 16,
    "stages": (1, 2, 2, 1),
    "num_heads": 1,
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "absolute window positions": (
        {"position_grid": 5, "layer_scale": 0.1},
        {"abs_win_pos_embed": True, "global_pos_size": (5, 5), "init_values": 0.1},
    ),
    "pooled shortcut": ({"project_shortcut": False}, {"use_expand_proj": False}),
    "other mask units": (
        {"depth": (1, 1, 2), "mask_unit_size": 4, "windowed_stages": 1, "mlp_ratio": 2, "heads": 2},
        {
            "stages": (1, 1, 2),
            "mask_unit_size": (4, 4),
            "mask_unit_attn": (True, False, False),
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "q_pool": 2,
        },
    ),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
FAMILY = Family(
    Hiera,
    TimmHiera,
    OURS,
    THEIRS,
    OPTIONS,
    module="hiera",
    named=[Named("hiera_tiny_224", {"depth": (1, 1, 1, 1)}, {"stages": (1, 1, 1, 1)})],
    maps=tuple(OPTIONS),
    trained=("plain",),
)


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model = randomise(Hiera(**OURS))
    written = to_format(model, "facebookresearch")
    again = Hiera(**OURS).eval()
    assert load_pretrained(again, written).format == "facebookresearch"
    reference = TimmHiera(**THEIRS).eval()
    reference.load_state_dict(checkpoint_filter_fn(dict(written)))
    x = images(64, 64)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_transformers() -> None:
    config = HieraConfig(
        image_size=[64, 64], embed_dim=16, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], num_labels=7
    )
    reference = randomise(HieraForImageClassification(config))
    model = Hiera(**OURS).eval()
    assert load_pretrained(model, reference.state_dict()).format == "transformers"
    x = images(64, 64)
    assert difference(model(x), reference(x).logits) < TOLERANCE
    written, state = to_format(model, "transformers"), reference.state_dict()
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


def attend_in_loops(attention: MaskUnitAttention, x: Tensor, unit: int) -> Tensor:
    """Attend from the maximum of the queries of each 2 x 2 cells of a map to the cells of their mask unit."""
    inner = attention.attention
    height, width, _ = x.shape
    q, k, v = inner.project(x.reshape(1, height * width, -1))
    q, k, v = (part[0].unflatten(1, (height, width)) for part in (q, k, v))
    rows = []
    for y in range(0, height, 2):
        for z in range(0, width, 2):
            query = torch.stack([q[:, y + i, z + j] for i in (0, 1) for j in (0, 1)]).max(dim=0).values
            up, left = y // unit * unit, z // unit * unit
            keys, values = (part[:, up : up + unit, left : left + unit].flatten(1, 2) for part in (k, v))
            scores = (keys @ query[..., None])[..., 0] * query.shape[-1] ** -0.5
            rows.append((scores.softmax(dim=-1)[:, None] @ values).flatten())
    return inner.to_out(torch.stack(rows)).unflatten(0, (height // 2, width // 2))


@torch.inference_mode()
@pytest.mark.parametrize("unit", [4, None])
def test_queries_are_pooled_within_mask_units(unit: int | None) -> None:
    attention = MaskUnitAttention(8, 16, heads=2, unit=unit, pool=True)
    randomise(attention)
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    found = attention(x)
    for sample, got in zip(x, found, strict=True):
        assert difference(got, attend_in_loops(attention, sample, unit or 8)) < TOLERANCE


def test_positions_for_maps_of_any_size() -> None:
    """Those within a mask unit repeat; the others are stretched, which leaves constant ones alone."""
    model = Hiera(**OURS, position_grid=5)
    nn.init.ones_(model.stem.positions.table)
    table = model.stem.positions.table_for((8, 16)).unflatten(1, (8, 16))
    within = model.stem.positions.within.unflatten(1, (8, 8))
    torch.testing.assert_close(table[:, :, :8] - 1, within, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(table[:, :, :8], table[:, :, 8:], rtol=1e-4, atol=1e-5)
    assert model.eval()(images(96, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_unit_size": 4}, r"mask_unit_size must be a multiple of 2 \*\* 3 with 4 stages, got 4"),
        ({"dim": (16, 24, 48, 96), "heads": (1, 2, 4, 8), "project_shortcut": False}, "channels that double"),
        ({"image_size": 48}, r"image size must be a multiple of \(32, 32\), got \(48, 48\)"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Hiera(**{**OURS, **options})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = Hiera(image_size=16, channels=1, num_classes=10, dim=32, depth=(1, 1), heads=2, mask_unit_size=4)
    assert accuracy_on_digits(model, size=16, epochs=6, goal=0.9) > 0.9
