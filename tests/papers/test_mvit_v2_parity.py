"""MViTv2 computes what timm's computes; pooling and embeddings of offsets against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg, checkpoint_filter_fn
from torch import Tensor

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.attention import Attention, BlockInputs
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.positions import axis_embeddings
from vit_pytorch.mvit_v2 import MViTv2, PoolingAttention
from vit_pytorch.pretrained import to_format

OURS: dict[str, Any] = {"image_size": 64, "num_classes": 7, "dim": 16, "heads": 2, "depth": (1, 2, 2, 2)}
THEIRS: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depths": (1, 2, 2, 2)}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "class token": ({"class_token": True}, {"use_cls_token": True}),
    "wider feed-forward": ({"widen": "feedforward"}, {"expand_attn": False}),
    "class token, wider feed-forward": (
        {"class_token": True, "widen": "feedforward"},
        {"use_cls_token": True, "expand_attn": False},
    ),
    "widths, no bias": (
        {"dim": (16, 24, 24, 40), "heads": (1, 2, 2, 5), "qkv_bias": False, "mlp_ratio": 3},
        {"embed_dim": (16, 24, 24, 40), "num_heads": (1, 2, 2, 5), "qkv_bias": False, "mlp_ratio": 3},
    ),
    "three stages, finer keys": (
        {"depth": (2, 1, 2), "kv_stride": 2, "norm_eps": 1e-5},
        {
            "depths": (2, 1, 2),
            "stride_q": ((1, 1), (2, 2), (2, 2)),
            "stride_kv_adaptive": (2, 2),
            "norm_eps": 1e-5,
        },
    ),
}


def make_timm(**changes: Any) -> MultiScaleVit:
    return MultiScaleVit(MultiScaleVitCfg(**changes), img_size=64, num_classes=7)


FAMILY = Family(
    MViTv2,
    make_timm,
    OURS,
    THEIRS,
    OPTIONS,
    module="mvitv2",
    named=[Named("mvitv2_tiny")],
    maps=tuple(OPTIONS),
    norms=[(False, False), (True, True)],
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("option", ["plain", "class token", "wider feed-forward"])
def test_weights_of_the_authors(option: str) -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model, reference = FAMILY.build(option)
    randomise(model)
    written = to_format(model, "facebookresearch")
    assert "blocks.6.attn.rel_pos_h" in written
    reference.load_state_dict(checkpoint_filter_fn({"model_state": dict(written)}, reference))
    again, _ = FAMILY.build(option)
    report = load_pretrained(again, {"model_state": written})
    assert (report.format, report.kept, report.dropped) == ("facebookresearch", (), ())
    x = images(64, 64)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_another_size() -> None:
    """Embeddings of offsets are stretched as timm's reader does, on loading and by `set_input_size`."""
    _, reference = FAMILY.build("plain")
    wider = MultiScaleVit(MultiScaleVitCfg(**THEIRS), img_size=96, num_classes=7).eval()
    wider.load_state_dict(checkpoint_filter_fn(dict(reference.state_dict()), wider))
    model = MViTv2(**{**OURS, "image_size": 96}).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.resized["stages.1.blocks.1.attention.positions"] == ((8, 8), (12, 12))
    x = images(96, 96)
    assert difference(model(x), wider(x)) < TOLERANCE
    resized, _ = FAMILY.build("plain")
    load_pretrained(resized, reference.state_dict())
    # of its own accord, then for good
    assert difference(resized(x), model(x)) < TOLERANCE
    resized.set_input_size(96)
    assert difference(resized(x), model(x)) < TOLERANCE


def pool_in_loops(
    module: PoolingAttention, name: str, x: Tensor, stride: int
) -> dict[tuple[int, int], Tensor]:
    """Return the pooled cells of a map (h w e) of queries, keys or values by their places."""
    pool, (height, width) = getattr(module, f"pool_{name}"), x.shape[:2]
    around = x.new_zeros(height + 2, width + 2, x.shape[2])
    around[1:-1, 1:-1] = x
    kernel = pool.conv.layers[0].weight[:, 0].permute(1, 2, 0)
    return {
        (row, column): pool.norm(
            sum(
                around[row * stride + y, column * stride + z] * kernel[y, z]
                for y in range(3)
                for z in range(3)
            )
        )
        for row in range(-(-height // stride))
        for column in range(-(-width // stride))
    }


def attend_in_loops(module: PoolingAttention, x: Tensor, height: int, width: int) -> Tensor:
    """Attend from the class token and each pooled query of a map to the class token and all pooled keys."""
    pooled = {}
    for name, part, stride in zip(
        "qkv", module.attention.project(x[None]), (*module.strides, 2), strict=True
    ):
        norm = getattr(module, f"pool_{name}").norm
        cells = part[0, 0, 1:].unflatten(0, (height, width))
        pooled[name] = {None: norm(part[0, 0, 0]), **pool_in_loops(module, name, cells, stride)}
    # places are counted in cells of the finer of the two maps
    of_queries, of_keys = (stride // min(module.strides) for stride in module.strides)
    last = max(place for place in pooled["k"] if place is not None)
    found = []
    for place, query in pooled["q"].items():
        scores = []
        for other, key in pooled["k"].items():
            scores.append(query @ key * len(query) ** -0.5)
            if place is not None and other is not None:
                down, right = (
                    a * of_queries + (end - b) * of_keys for a, b, end in zip(place, other, last, strict=True)
                )
                scores[-1] = scores[-1] + query @ (
                    module.positions.rows[down] + module.positions.columns[right]
                )
        weights = torch.stack(scores).softmax(0)
        mixed = sum(weight * value for weight, value in zip(weights, pooled["v"].values(), strict=True))
        found.append(mixed + query)
    return module.attention.to_out(torch.stack(found))


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pooling_attention_in_plain_loops(stride: int) -> None:
    """Keys and values pooled by 2, queries by less, as much, and more; the class token is not pooled."""
    height, width = 8, 12
    attention = Attention(6, heads=1, dim_head=4, out_dim=5)
    module = PoolingAttention(attention, (height, width), (stride, 2), torch.nn.LayerNorm)
    randomise(module)
    x = torch.randn(2, 1 + height * width, 6, generator=torch.Generator().manual_seed(0))
    found = module(x, BlockInputs((height, width), 1))
    for one, sample in zip(found, x, strict=True):
        assert difference(one, attend_in_loops(module, sample, height, width)) < TOLERANCE


def test_places_of_maps_that_do_not_divide() -> None:
    """The fewer are spread over the others, at whole places; the last key is counted from."""
    table = torch.arange(13.0)[:, None]
    assert axis_embeddings(table, 7, 4)[..., 0].tolist() == [
        [row + column for column in (5, 3, 1, 0)] for row in range(7)
    ]
    assert axis_embeddings(table, 4, 7)[..., 0].tolist() == [
        [row + column for column in (6, 5, 4, 3, 2, 1, 0)] for row in (0, 1, 3, 5)
    ]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(50, 37), (96, 64), (9, 130)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    """Each map has the ceiling of half of the rows and columns of the one before."""
    model = randomise(MViTv2(**OURS, class_token=True))
    maps = model.forward_intermediates(images(*size), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-s // 2**i) for s in size) for i in range(2, 6)]
    assert model(images(*size)).std() > 0.05


def test_rates_of_dropped_branches_rise() -> None:
    model = MViTv2(**OURS, drop_path=0.6)
    rates = [part.p for part in model.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widen": "norm"}, "widen must be one of attention, feedforward; got 'norm'"),
        ({"dim": 15}, r"dims must be multiples of heads, got \(15, 30, 60, 120\) and \(2, 4, 8, 16\)"),
        ({"dim": (16, 32)}, r"dim must be one number or one for each of 4 stages, got \(16, 32\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MViTv2(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "dim": (32, 64), "depth": (1, 1), "heads": (1, 2), "kv_stride": 2}
    model = create_model("mvitv2_tiny", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=16, epochs=6, goal=0.9) > 0.9
