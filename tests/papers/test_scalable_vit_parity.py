"""ScalableViT computes what its authors' program computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.papers.golden import assert_goes_back, read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.conv import PositionedBlock
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.scalable_vit import (
    IWSA,
    SSA,
    ScalableViT,
)

SMALL = {
    "num_classes": 7,
    "dim": (16, 32, 40),
    "heads": (2, 4, 5),
    "depth": (2, 2, 2),
    "ssa_dim_key": 10,
    "reduction_factor": (4, 2, 1),
    "window_size": (4, 4, 2),
    "representation_size": 24,
}


def build(**changes: Any) -> ScalableViT:
    model = ScalableViT(**{**SMALL, **changes})
    randomise(model)
    return model.eval()


def from_golden(config: dict[str, Any]) -> ScalableViT:
    """Build ours from the reference's arguments, in which widths of keys are factors."""
    heads = config["num_heads"]
    ratios = zip(config["embed_dims"], heads, config["c_ratios"], strict=True)
    return ScalableViT(
        num_classes=config["num_classes"],
        dim=config["embed_dims"],
        heads=heads,
        depth=config["depths"],
        ssa_dim_key=[int(dim * ratio) // h for dim, h, ratio in ratios],
        reduction_factor=config["sr_ratios"],
        window_size=config["wss"],
        image_size=config["img_size"],
        qkv_bias=config["qkv_bias"],
        representation_size=None if config["plain_head"] else 4096,
    ).eval()


@torch.inference_mode()
def test_logits_equal_the_authors() -> None:
    config, weights, golden = read_golden("scalablevit")
    model = from_golden(config)
    report = load_pretrained(model, weights, strict=True)
    assert report.format == "ScalableViT"
    assert not report.dropped
    features = model.forward_features(golden["input"])
    assert difference(features.mean(dim=(2, 3)), golden["features"]) < TOLERANCE
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    assert_goes_back(model, "ScalableViT", weights)


def test_checkpoint_with_a_plain_head_loads_and_goes_back() -> None:
    model, again = build(representation_size=None), build(representation_size=None)
    nn.init.zeros_(again.head.weight)
    state = to_format(model, "ScalableViT with a plain head")
    assert {"head.weight", "head.bias"} <= state.keys()
    assert load_pretrained(again, state, strict=True).format == "ScalableViT with a plain head"
    assert again(images(64, 64)).equal(model(images(64, 64)))


@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
def test_new_number_of_classes_keeps_the_hidden_layer_where_there_is_one() -> None:
    state = to_format(build(), "ScalableViT")
    other = build(num_classes=3)
    assert set(load_pretrained(other, state).kept) == {"head.weight", "head.bias"}
    assert other.pre_logits[0].weight.equal(state["head.0.weight"])
    plain = build(num_classes=3, representation_size=None)
    assert set(load_pretrained(plain, state).dropped) >= {"pre_logits.0.weight", "pre_logits.1.bias"}


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("small", 32_000_472), ("small_0", 26_307_032), ("base", 81_881_624), ("large", 109_288_840)],
)
def test_parameter_count_is_that_of_the_authors_code(size: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(f"scalable_vit_{size}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert find_entry(f"scalable_vit_{size}").parameters == parameters
    assert len(list_models("scalable_vit_*")) == 4


def test_example_is_the_small_model_with_other_windows() -> None:
    with torch.device("meta"):
        example = ScalableViT(
            num_classes=1000,
            dim=64,
            heads=(2, 4, 8, 16),
            depth=(2, 2, 20, 2),
            ssa_dim_key=(40, 40, 40, 32),
            reduction_factor=(8, 4, 2, 1),
            window_size=(64, 32, None, None),
            dropout=0.1,
        )
        small = create_model("scalable_vit_small")
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (example, small)]
    assert shapes[0] == shapes[1]


def test_dropout_is_in_attention_and_feed_forward() -> None:
    for attn_dropout, want in ((None, 0.25), (0.125, 0.125)):
        for stage in build(dropout=0.25, attn_dropout=attn_dropout).stages:
            for block in stage.blocks:
                assert block.attention.kernel.dropout == want
                assert block.attention.dropout.p == block.feedforward.dropout.p == 0.25


@torch.inference_mode()
def test_maps_and_strides() -> None:
    model = create_model("scalable_vit_small", depth=(1, 1, 1, 1)).eval()
    maps = model.forward_intermediates(images(224, 224, batch=1), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]


# The two kinds of attention against plain loops.


def attend_plainly(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Attention head by head, of (n, heads * e) to (m, heads * e)."""
    out = []
    for query, key, value in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        out.append((query @ key.T * scale).softmax(dim=1) @ value)
    return torch.cat(out, dim=1)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("window", "grid"),
    [(4, (8, 12)), (4, (7, 10)), (3, (5, 2)), (7, (4, 9)), (0, (5, 6)), (9, (5, 6))],
)
def test_window_attention_equals_plain_loops(window: int, grid: tuple[int, int]) -> None:
    """Also where windows do not divide the map: the last ones of a row or column have fewer cells."""
    module = randomise(IWSA(12, heads=3, window=window))
    x = torch.randn(2, *grid, 12)
    q, k, v = module.to_qkv(x).chunk(3, dim=-1)
    mixed = torch.empty_like(x)
    side = window or max(grid)
    for b in range(2):
        for i in range(0, grid[0], side):
            for j in range(0, grid[1], side):
                part = (b, slice(i, i + side), slice(j, j + side))
                cells = [each[part].flatten(0, 1) for each in (q, k, v)]
                mixed[part] = attend_plainly(*cells, 3, 4**-0.5).view_as(mixed[part])
    conv = module.local.layers[0]
    local = torch.zeros_like(x)
    filled = nn.functional.pad(v, (0, 0, 1, 1, 1, 1))
    for i in range(3):
        for j in range(3):
            local += filled[:, i : i + grid[0], j : j + grid[1]] * conv.weight[:, 0, i, j]
    want = module.to_out(mixed + local + conv.bias)
    assert difference(module(x), want) < TOLERANCE


@torch.inference_mode()
def test_attention_to_the_shrunken_map_equals_plain_loops() -> None:
    module = randomise(SSA(12, heads=3, dim_key=5, reduction=2))
    x = torch.randn(2, 4, 6, 12)
    conv, widen, norm, act, to_kv = module.to_kv
    for sample, out in zip(x, module(x), strict=True):
        cells = []
        for i in range(2):
            for j in range(3):
                part = sample[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                cells.append((part * conv.layers[0].weight[:, 0].permute(1, 2, 0)).sum(dim=(0, 1)))
        shrunken = act(norm(widen(torch.stack(cells) + conv.layers[0].bias)))
        k, v = to_kv(shrunken).split((15, 12), dim=1)
        mixed = attend_plainly(module.to_q(sample).flatten(0, 1), k, v, 3, 5**-0.5)
        assert difference(out, module.to_out(mixed).view_as(out)) < TOLERANCE


@torch.inference_mode()
def test_without_reduction_the_width_of_keys_only_scales_the_scores() -> None:
    module = randomise(SSA(12, heads=3, dim_key=5, reduction=1))
    assert module.to_q.weight.shape == (12, 12)
    x = torch.randn(1, 4, 6, 12)
    k, v = module.to_kv(x[0]).flatten(0, 1).chunk(2, dim=1)
    mixed = attend_plainly(module.to_q(x[0]).flatten(0, 1), k, v, 3, 5**-0.5)
    assert difference(module(x)[0].flatten(0, 1), module.to_out(mixed)) < TOLERANCE


# Inputs of other sizes.


@torch.inference_mode()
@pytest.mark.parametrize("size", [(16, 16), (32, 80), (96, 48), (240, 16)])
def test_any_multiple_of_the_last_stride_is_taken(size: tuple[int, int]) -> None:
    model = build(window_size=3)
    maps = model.forward_intermediates(images(*size), intermediates_only=True)
    assert [m.shape[2:] for m in maps] == [(size[0] // s, size[1] // s) for s in (4, 8, 16)]
    assert model(images(*size)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "size", "multiple"),
    [({}, (64, 72), 16), ({"reduction_factor": (6, 2, 1)}, (64, 96), 48), ({}, (8, 16), 16)],
)
def test_size_that_does_not_divide_is_refused(
    changes: dict[str, Any], size: tuple[int, int], multiple: int
) -> None:
    model = build(image_size=96, **changes)
    message = rf"image size must be a multiple of \({multiple}, {multiple}\), got \({size[0]}, {size[1]}\)"
    with pytest.raises(ValueError, match=message):
        model(images(*size))


# What other programs get wrong.


def test_windows_come_first_and_each_attention_has_its_own_feed_forward() -> None:
    for stage in build(depth=(4, 3, 1)).stages:
        blocks = stage.blocks
        kinds = [type(block.attention) for block in blocks]
        assert kinds == [IWSA, SSA] * (len(kinds) // 2) + ([IWSA] * (len(kinds) % 2))
        assert [isinstance(block, PositionedBlock) for block in blocks] == [True] + [False] * (
            len(blocks) - 1
        )
        assert len({id(block.feedforward) for block in blocks}) == len(blocks)


def test_values_are_mixed_locally_channel_by_channel() -> None:
    module = IWSA(12, heads=3, window=2)
    assert module.local.layers[0].weight.shape == (12, 1, 3, 3)
    assert module.to_qkv.bias is not None


def test_keys_have_the_width_given_and_values_that_of_the_heads() -> None:
    model = build()
    first = model.stages[0].blocks[1].attention
    assert first.to_q.weight.shape == (2 * 10, 16)
    assert first.to_kv[-1].weight.shape == (2 * 10 + 16, 2 * 10)
    assert first.to_kv[0].layers[0].groups == 16


def test_every_embedding_has_a_norm_and_no_stage_another() -> None:
    model = build()
    assert all(isinstance(stage.down[1], nn.LayerNorm) for stage in model.stages)
    assert [name for name, _ in model.stages[0].named_children()] == ["down", "blocks"]
    x = images(64, 64)
    last, maps = model.forward_intermediates(x)
    assert not maps[-1].equal(last)
    assert model.norm(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2).equal(last)


def test_epsilons_are_the_authors() -> None:
    found = {
        m.eps for name, m in build().named_modules() if isinstance(m, nn.LayerNorm) and ".to_kv." in name
    }
    others = {
        m.eps for name, m in build().named_modules() if isinstance(m, nn.LayerNorm) and ".to_kv." not in name
    }
    assert (found, others) == ({1e-5}, {1e-6})


def test_convolutions_of_positions_are_not_decayed() -> None:
    assert build().no_weight_decay() == {f"stages.{i}.blocks.0.positions.conv.weight" for i in range(3)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": (2, 4)}, r"heads must be one number or one for each of 3 stages, got \(2, 4\)"),
        (
            {"window_size": (7, 7)},
            r"window_size must be one number or one for each of 3 stages, got \(7, 7\)",
        ),
        ({"heads": (2, 4, 3)}, "must be a multiple of heads, got dim=40 and heads=3"),
        ({"image_size": 100}, r"image size must be a multiple of \(16, 16\), got \(100, 100\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**wrong)
