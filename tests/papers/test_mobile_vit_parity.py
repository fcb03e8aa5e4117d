"""MobileViT computes what timm's and transformers' MobileViT compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.byobnet import ByobNet, ByoModelCfg
from timm.models.mobilevit import _inverted_residual_block, _mobilevit_block
from torch import Tensor, nn
from transformers import MobileViTConfig, MobileViTForImageClassification

from tests.papers.family import Family, Named
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.mobile_vit import InvertedResidual, MobileViT, round_to_eights
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

WIDTHS = (8, 16, 24, 24, 32, 32, 40, 40, 48, 48, 56)
OURS = {"image_size": 64, "dims": (16, 20, 24), "widths": WIDTHS, "num_classes": 7, "depths": (1, 2, 1)}
SIZES = [(64, 64), (96, 64), (50, 71), (33, 160)]
# our options, and what changes in timm's model with them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "expansion 2": ({"expansion": 2}, {"br": 2.0}),
    "stage whose width stays": ({"widths": (16, *WIDTHS[1:])}, {"stem": 16}),
    "patches of 4": ({"patch_size": 4}, {"patch_size": 4}),
    "odd maps": ({"image_size": (50, 71)}, {}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}


def make_timm(*, br: float = 4.0, stem: int = 8, patch_size: int = 2, num_classes: int = 7) -> ByobNet:
    stages = zip(WIDTHS[4:10:2], OURS["dims"], OURS["depths"], strict=True)
    cfg = ByoModelCfg(
        blocks=(
            _inverted_residual_block(d=1, c=16, s=1, br=br),
            _inverted_residual_block(d=3, c=24, s=2, br=br),
            *(
                _mobilevit_block(
                    1, c, 2, transformer_dim=dim, transformer_depth=depth, patch_size=patch_size, br=br
                )
                for c, dim, depth in stages
            ),
        ),
        stem_chs=stem,
        stem_type="3x3",
        stem_pool="",
        downsample="",
        act_layer="silu",
        num_features=56,
    )
    return ByobNet(replace(cfg), num_classes=num_classes)


FAMILY = Family(
    MobileViT,
    make_timm,
    OURS,
    {},
    OPTIONS,
    module=None,
    named=[Named("mobilevit_xxs", size=(33, 65))],
    trained=("plain",),
)


@pytest.fixture
def model() -> MobileViT:
    return FAMILY.pair("plain")[0]


@pytest.fixture(scope="module")
def transformers_pair() -> tuple[MobileViT, MobileViTForImageClassification]:
    """The number of its transformer blocks is fixed."""
    config = MobileViTConfig(
        hidden_sizes=[16, 20, 24],
        neck_hidden_sizes=[WIDTHS[i] for i in (0, 1, 3, 5, 7, 9, 10)],
        num_labels=7,
    )
    reference = randomise(MobileViTForImageClassification(config))
    model = MobileViT(**{**OURS, "depths": (2, 4, 3)}).eval()
    load_pretrained(model, reference.state_dict())
    return model, reference


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_equal_transformers(transformers_pair: Any, size: tuple[int, int]) -> None:
    model, reference = transformers_pair
    x = images(*size)
    assert difference(model(x), reference(x).logits) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 96), (50, 71)], ids=str)
def test_maps_of_the_stages_equal_transformers(transformers_pair: Any, size: tuple[int, int]) -> None:
    model, reference = transformers_pair
    x = images(*size)
    last, ours = model.forward_intermediates(x)
    theirs = reference.mobilevit(x, output_hidden_states=True)
    assert difference(last, theirs.last_hidden_state) < TOLERANCE
    assert len(ours) == len(theirs.hidden_states) == 5
    assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, theirs.hidden_states, strict=True))
    assert [i["reduction"] for i in model.feature_info] == [2, 4, 8, 16, 32]
    assert [i["num_chs"] for i in model.feature_info] == [16, 24, 32, 40, 48]


def test_training_step_equals_timms() -> None:
    model, reference = FAMILY.pair("plain")
    x = images(64, 64, batch=4)
    for net in (model, reference):
        net.train()
    ours, theirs = model(x), reference(x)
    assert difference(ours, theirs) < 10 * TOLERANCE
    for logits in (ours, theirs):
        logits.square().sum().backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    written = to_format(model, "timm")
    for name in (n for n in written if "running" in n):
        torch.testing.assert_close(written[name], reference.state_dict()[name], rtol=1e-4, atol=1e-5)
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad)
    written = to_format(model, "timm")
    close = 1e-5 * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(written[name], gradient, rtol=1e-3, atol=close)


@torch.inference_mode()
@pytest.mark.parametrize("name", list_models("mobilevit_*"))
def test_named_model_equals_timms(name: str) -> None:
    reference = randomise(timm.create_model(name))
    model = create_model(name).eval()
    load_pretrained(model, reference.state_dict())
    parameters = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in model.parameters()) == parameters == find_entry(name).parameters
    x = images(96, 96, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("mobilevit_xxs", 1_272_024), ("mobilevit_xs", 2_317_848), ("mobilevit_s", 5_578_632)],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


def test_transformers_default_is_the_small_model() -> None:
    with torch.device("meta"):
        reference = MobileViTForImageClassification(MobileViTConfig(num_labels=1000))
    assert sum(p.numel() for p in reference.parameters()) == find_entry("mobilevit_s").parameters


def test_the_example_is_the_papers_extra_small_model() -> None:
    with torch.device("meta"):
        example = MobileViT(
            image_size=(256, 256),
            dims=[96, 120, 144],
            channels=[16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384],
            num_classes=1000,
        )
        named = create_model("mobilevit_xs")
    assert example.channels == example.config["channels"] == 3
    assert example.config["widths"] == named.config["widths"]
    ours, theirs = ({n: p.shape for n, p in m.named_parameters()} for m in (example, named))
    assert ours == theirs


def test_weights_go_back_to_transformers(transformers_pair: Any) -> None:
    model, reference = transformers_pair
    written, state = to_format(model, "transformers"), reference.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


# What other programs get wrong.


@torch.inference_mode()
@pytest.mark.parametrize("size", [(6, 8), (5, 7)], ids=str)
def test_block_in_plain_steps(model: MobileViT, size: tuple[int, int]) -> None:
    block = model.stages[2].blocks[0]
    x = torch.randn(2, 32, *size)

    def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
        weight = conv.weight if conv.weight.ndim == 4 else conv.weight[:, :, None, None]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        return F.silu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))

    local, fuse = block.local.layers[0], block.fuse.layers[0]
    y = conv_norm(x, local.conv, local.norm)
    y = F.conv2d(y, block.widen.weight[:, :, None, None])
    height, width = (2 * -(-extent // 2) for extent in size)
    if (height, width) != size:
        y = F.interpolate(y, (height, width), mode="bilinear")
    out = torch.empty_like(y)
    for row in range(2):
        for column in range(2):
            cells = y[:, :, row::2, column::2]
            tokens = cells.flatten(2).mT
            for layer in block.transformer:
                tokens = layer(tokens)
            tokens = block.norm(tokens)
            out[:, :, row::2, column::2] = tokens.mT.unflatten(2, cells.shape[2:])
    if (height, width) != size:
        out = F.interpolate(out, size, mode="bilinear")
    y = conv_norm(out, block.narrow[0], block.narrow[1].layers[0])
    y = conv_norm(torch.cat([x, y], dim=1), fuse.conv, fuse.norm)
    got = block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, y, rtol=1e-4, atol=1e-5)


def test_heads_share_the_width_and_the_feedforward_doubles_it(model: MobileViT) -> None:
    for stage, dim in zip(model.stages[2:], OURS["dims"], strict=True):
        block = stage.blocks[0]
        assert block.widen.bias is None
        assert block.norm.normalized_shape == (dim,)
        for layer in block.transformer:
            attention = layer.attention
            assert (attention.heads, attention.dim_head) == (4, dim // 4)
            assert attention.to_qkv.bias is not None
            assert layer.feedforward.to_hidden.out_features == 2 * dim
    assert model.head.bias is not None


def test_the_smallest_model_widens_by_two() -> None:
    with torch.device("meta"):
        first = create_model("mobilevit_xxs").stages[1].down
    assert (first.expand.in_features, first.expand.out_features) == (16, 32)


@pytest.mark.parametrize(
    ("width", "rounded"), [(2.0, 8), (48.0, 48), (51.9, 48), (52.0, 56), (11.0, 16), (12.5, 16), (88.0, 88)]
)
def test_widths_are_rounded_to_eights(width: float, rounded: int) -> None:
    assert round_to_eights(width) == rounded


@torch.inference_mode()
def test_residual_where_the_map_stays() -> None:
    for arguments, residual in (
        ({"dim": 8, "out_dim": 8}, True),
        ({"dim": 8, "out_dim": 12}, False),
        ({"dim": 8, "out_dim": 8, "stride": 2}, False),
    ):
        bottleneck = InvertedResidual(**arguments).eval()
        nn.init.zeros_(bottleneck.project.weight)
        x = torch.randn(1, 4, 4, 8)
        assert bottleneck(x).equal(x) is residual
        assert bottleneck(x).any() == residual


@torch.inference_mode()
def test_a_cell_sees_the_whole_map(model: MobileViT) -> None:
    """Attention joins the cells 2 apart, and the convolutions around it neighbours."""
    block = model.stages[2].blocks[0]
    x = torch.randn(1, 8, 8, 16)
    changed = x.clone()
    changed[0, 0, 0] = torch.randn(16)
    moved = (block.look(changed) - block.look(x)).abs().amax(dim=-1)[0] > 0
    assert moved[::2, ::2].all()
    assert moved.sum() == 16
    x = torch.randn(1, 8, 8, 32)
    changed = x.clone()
    changed[0, 0, 0] = torch.randn(32)
    assert ((block(changed) - block(x)).abs().amax(dim=-1) > 0).all()


def test_width_of_the_features_is_that_of_the_pooled_map(model: MobileViT) -> None:
    assert model.num_features == model.head_hidden_size == 56
    assert model.forward_features(images(64, 64)).shape == (2, 56, 2, 2)
    assert model.forward_head(model.forward_features(images(64, 64)), pre_logits=True).shape == (2, 56)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"widths": WIDTHS[1:]}, "widths must be 11, one for each map, got 10"),
        ({"widths": None}, "widths must be 11, one for each map, got 0"),
        ({"widths": (*WIDTHS[:3], 20, *WIDTHS[4:])}, r"must be the same, got \[\(24, 20\)"),
        ({"channels": WIDTHS}, "widths must be given once"),
        ({"dims": (16, 20)}, r"dims and depths must be one for each of 3 stages, got \(16, 20\)"),
        ({"depths": (1, 1)}, r"got \(16, 20, 24\) and \(1, 1\)"),
        ({"dims": (16, 22, 24)}, "dim must be a multiple of heads, got dim=22 and heads=4"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MobileViT(**{**OURS, **wrong})
