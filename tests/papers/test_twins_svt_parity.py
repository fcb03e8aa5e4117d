"""Twins computes what timm's Twins computes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.twins import Twins

from tests.papers.family import Family, Named
from tests.papers.reference import TOLERANCE, difference, images, shapes_only
from vit_pytorch import create_model, list_models
from vit_pytorch.layers.conv import PositionedBlock, PositionGenerator
from vit_pytorch.layers.windows import GroupAttention, SubsampledAttention
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.registry.twins_svt import stages
from vit_pytorch.twins_svt import TwinsSVT

OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "heads": (2, 3, 4, 5),
    **stages(
        emb_dim=(16, 24, 32, 40),
        depth=(1, 1, 2, 1),
        local_patch_size=(4, 4, 2, 2),
        global_k=(8, 4, 2, 1),
    ),
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "embed_dims": (16, 24, 32, 40),
    "depths": (2, 2, 4, 2),
    "num_heads": (2, 3, 4, 5),
    "wss": (4, 4, 2, 2),
    "sr_ratios": (8, 4, 2, 1),
}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (96, 32)}, {}),
    "windows that do not fill": (stages(local_patch_size=(7, 3, 3, 7)), {"wss": (7, 3, 3, 7)}),
    "squares that do not fill": (stages(global_k=(5, 3, 3, 2)), {"sr_ratios": (5, 3, 3, 2)}),
    "without windows": (
        stages(local_patch_size=(None,) * 4, depth=(1, 3, 2, 1)),
        {"wss": None, "depths": (1, 3, 2, 1)},
    ),
    "heads": ({"heads": (1, 2, 2, 4)}, {"num_heads": (1, 2, 2, 4)}),
    "feed-forward": ({"mlp_ratio": (8, 6, 2, 1)}, {"mlp_ratios": (8, 6, 2, 1)}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}
FAMILY = Family(
    TwinsSVT,
    Twins,
    OURS,
    THEIRS,
    OPTIONS,
    module="twins",
    named=[
        Named("twins_svt_small"),
        Named("twins_svt_small", size=(192, 256)),
        Named("twins_pcpvt_small"),
    ],
    maps=("not square", "without windows"),
    norms=[(False, False), (True, True)],
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(96, 96), (64, 160), (32, 32)])
@pytest.mark.parametrize("name", ["plain", "without windows"])
def test_other_sizes_equal_timms(name: str, size: tuple[int, int]) -> None:
    model, reference = FAMILY.pair(name)
    assert difference(model(images(*size)), reference(images(*size))) < TOLERANCE


@pytest.mark.parametrize("name", list_models("twins_*"))
def test_parameter_count_equals_timms(name: str) -> None:
    with shapes_only():
        model, reference = create_model(name), timm.create_model(name)
    theirs = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in model.parameters()) == theirs == find_entry(name).parameters
    assert to_format(model, "timm").keys() == reference.state_dict().keys()
    assert model.default_cfg["mean"] == reference.default_cfg["mean"]
    assert model.default_cfg["crop_pct"] == reference.default_cfg["crop_pct"]


def test_weight_decay_leaves_what_timm_leaves() -> None:
    model, reference = FAMILY.pair("plain")
    left = model.no_weight_decay()
    matrices = {name for name in reference.no_weight_decay() if name.endswith("weight")}
    assert left == {f"stages.{name.split('.')[1]}.blocks.0.positions.conv.weight" for name in matrices}


# What other programs get wrong.


def test_heads_are_as_wide_in_every_stage() -> None:
    with shapes_only():
        model = create_model("twins_svt_base")
    heads = [stage.blocks[1].attention.attention.heads for stage in model.stages]
    assert heads == [3, 6, 12, 24]
    widths = [stage.blocks[1].attention.attention.to_q.out_features for stage in model.stages]
    assert widths == [32 * n for n in heads]
    assert all(stage.blocks[0].attention.attention.dim_head == 32 for stage in model.stages)


def test_local_and_global_blocks_take_turns_in_every_stage() -> None:
    model = TwinsSVT(**OURS)
    kinds = [[type(b.attention) for b in stage.blocks] for stage in model.stages]
    pair = [GroupAttention, SubsampledAttention]
    assert kinds == [pair, pair, pair * 2, pair]
    with shapes_only():
        small = create_model("twins_svt_small")
    assert [len(stage.blocks) for stage in small.stages] == [2, 2, 10, 4]


def test_places_are_told_once_behind_the_first_block() -> None:
    model = TwinsSVT(**OURS)
    for stage in model.stages:
        first, *others = stage.blocks
        assert isinstance(first, PositionedBlock)
        assert not any(
            isinstance(module, PositionGenerator) for block in others for module in block.modules()
        )
    block = model.stages[0].blocks[0]
    x = torch.randn(1, 8, 8, 16)
    before = x + block.attention(block.norm1(x))
    before = before + block.feedforward(block.norm2(before))
    torch.testing.assert_close(block(x), block.positions(before))


def test_summary_keeps_the_width_and_is_normed() -> None:
    """Keys and values have biases and come from one small convolution, not from two large ones."""
    summed = TwinsSVT(**OURS).stages[0].blocks[1].attention
    assert {name: tuple(p.shape) for name, p in summed.named_parameters()} == {
        "attention.to_q.weight": (16, 16),
        "attention.to_q.bias": (16,),
        "attention.to_kv.weight": (32, 16),
        "attention.to_kv.bias": (32,),
        "attention.to_out.weight": (16, 16),
        "attention.to_out.bias": (16,),
        "summary.0.layers.0.weight": (16, 16, 8, 8),
        "summary.0.layers.0.bias": (16,),
        "summary.1.weight": (16,),
        "summary.1.bias": (16,),
    }
    assert summed.summary(torch.randn(1, 16, 24, 16)).shape == (1, 2, 3, 16)


def test_a_rate_of_one_is_attention_to_all_cells() -> None:
    summed = TwinsSVT(**OURS).stages[3].blocks[1].attention
    x = torch.randn(2, 2, 3, 40)
    assert len(summed.summary) == 0
    cells = x.flatten(1, 2)
    torch.testing.assert_close(summed(x).flatten(1, 2), summed.attention(cells, cells))


def test_patches_are_normed_behind_their_projection_alone() -> None:
    model = TwinsSVT(**OURS)
    x = images(64, 64)
    conv, norm = model.stages[0].down[0].layers[0], model.stages[0].down[1]
    torch.testing.assert_close(model.stages[0].down(x.permute(0, 2, 3, 1)), norm(conv(x).permute(0, 2, 3, 1)))
    assert norm.eps == 1e-5
    assert model.norm.eps == model.stages[0].blocks[0].norm1.eps == 1e-6


def test_the_example_sums_up_seven_by_seven_cells() -> None:
    with shapes_only():
        model = TwinsSVT(num_classes=5)
    rates = [stage.blocks[1].attention.summary[0].layers[0].stride for stage in model.stages]
    assert rates == [(7, 7)] * 4
    assert model.min_size == (224, 224)
    assert model.size_multiple == (32, 32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 72}, r"image size must be a multiple of \(32, 32\), got \(72, 72\)"),
        ({"s4_global_k": 3}, r"at least \(96, 96\), got image size \(64, 64\)"),
        ({"heads": None}, r"dims must be multiples of 32, the head dimension, got \(16, 24, 32, 40\)"),
        ({"heads": (3, 3, 4, 5)}, r"multiples of heads, got \(16, 24, 32, 40\) and \(3, 3, 4, 5\)"),
        ({"heads": (3, 3)}, r"heads must be one for each of 4 stages, got \(3, 3\)"),
        ({"mlp_ratio": (4, 4)}, r"mlp_ratio must be one number or one for each of 4 stages, got \(4, 4\)"),
        ({"s2_depth": 0}, r"s2_depth must be .*, got 0"),
        ({"peg_kernel_size": 4}, "a kernel that keeps the size is odd, got 4"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwinsSVT(**{**OURS, **wrong})


def test_arguments_of_version_0_1() -> None:
    old = {**OURS, "heads": None, "dim_head": 8, "qkv_bias": True}
    with pytest.warns(DeprecationWarning, match=r"form: dim_head=8 is now heads=\(2, 3, 4, 5\)$"):
        model = TwinsSVT(**old)
    assert model.config == {**TwinsSVT(**OURS).config, "heads": [2, 3, 4, 5]}
    for wrong, message in (({"qkv_bias": False}, "qkv_bias=False"), ({"heads": (1, 1, 1, 1)}, "share")):
        with pytest.raises(ValueError, match=message):
            TwinsSVT(**{**old, **wrong})


def test_too_small_images_are_refused() -> None:
    model = TwinsSVT(**{**OURS, "s4_global_k": 2})
    with pytest.raises(ValueError, match=r"at least \(64, 64\), got image size \(64, 32\)"):
        model(images(64, 32))
