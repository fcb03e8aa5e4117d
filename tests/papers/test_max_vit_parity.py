"""MaxViT computes what timm's MaxxVit with TensorFlow's options and torchvision's MaxVit compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, _tf_cfg, checkpoint_filter_fn, model_cfgs
from torch import nn
from torchvision.models.maxvit import MaxVit as TorchvisionMaxVit

from tests.papers.reference import (
    TOLERANCE,
    check_parity,
    difference,
    images,
    randomise,
)
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.conv import halving_conv
from vit_pytorch.max_vit import MaxViT
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

OURS = {"num_classes": 7, "dim": 16, "depth": (1, 2), "dim_conv_stem": 12, "dim_head": 8, "window_size": 4}
TORCHVISION = {
    "act": "gelu",
    "padding": "symmetric",
    "project_shortcuts": True,
    "scale_by": "dim",
    "stem_bias": False,
    "head_bias": False,
}
# our options, and those of timm's model that change with them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "window not square": ({"window_size": (2, 4)}, {"transformer_window_size": (2, 4)}),
    "window of the image": (
        {"window_size": None, "image_size": 24},
        {"img_size": 24, "transformer_partition_ratio": 8, "transformer_window_size": None},
    ),
    "wide stem": ({"dim_conv_stem": None}, {"stem_width": 16}),
    "rates": (
        {"mbconv_expansion_rate": 3.0, "mbconv_shrinkage_rate": 0.5, "mlp_ratio": 2.0},
        {"conv_expand_ratio": 3.0, "conv_attn_ratio": 0.5, "transformer_expand_ratio": 2.0},
    ),
    "epsilons": ({"bn_eps": 1e-5, "norm_eps": 1e-6}, {"conv_norm_eps": 1e-5, "transformer_norm_eps": 1e-6}),
    "representation": ({"representation_size": 20}, {"head_hidden_size": 20}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}


def make_timm(**changes: Any) -> MaxxVit:
    cfg = MaxxVitCfg(
        embed_dim=(16, 32),
        depths=(1, 2),
        block_type=("M", "M"),
        stem_width=12,
        stem_bias=True,
        head_hidden_size=32,
        **_tf_cfg(),
    )
    options = {"img_size": 32, "num_classes": 7, "transformer_dim_head": 8, "transformer_window_size": (4, 4)}
    return randomise(MaxxVit(cfg, **{**options, **changes}))


def make_pair(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[MaxViT, MaxxVit]:
    """Ours and timm's with the same weights."""
    reference = make_timm(**theirs)
    model = MaxViT(**{**OURS, **ours}).eval()
    load_pretrained(model, reference.state_dict())
    return model, reference


@pytest.fixture(params=OPTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[MaxViT, MaxxVit]:
    return make_pair(*OPTIONS[request.param])


@pytest.fixture
def torchvision_pair() -> tuple[MaxViT, TorchvisionMaxVit]:
    reference = TorchvisionMaxVit(
        input_size=(64, 64),
        stem_channels=12,
        partition_size=4,
        block_channels=[16, 32],
        block_layers=[1, 2],
        head_dim=8,
        stochastic_depth_prob=0.0,
        num_classes=7,
    )
    randomise(reference)
    model = MaxViT(**OURS, **TORCHVISION, image_size=64).eval()
    load_pretrained(model, reference.state_dict())
    return model, reference


@torch.inference_mode()
def test_logits_equal_timms(pair: tuple[MaxViT, MaxxVit]) -> None:
    model, reference = pair
    for times in ((1, 1), (2, 1), (1, 3)):
        x = images(*(extent * n for extent, n in zip(model.image_size, times, strict=True)))
        assert difference(model(x), reference(x)) < TOLERANCE
        assert difference(model.forward_features(x), reference.forward_features(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("indices", [None, 1, [0, -1]])
def test_maps_of_the_stages_equal_timms(indices: Any) -> None:
    """timm counts the stem as a stage, too."""
    model, reference = make_pair(*OPTIONS["plain"])
    x = images(32, 64)
    last, ours = model.forward_intermediates(x, indices)
    theirs = {None: [1, 2], 1: [2]}.get(indices, [1, 2]) if not isinstance(indices, list) else [1, 2]
    expected, wanted = reference.forward_intermediates(x, theirs)
    assert difference(last, expected) < TOLERANCE
    assert len(ours) == len(wanted)
    assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, wanted, strict=True))
    assert [i["reduction"] for i in model.feature_info] == [4, 8]
    assert [i["num_chs"] for i in model.feature_info] == [16, 32]


@torch.inference_mode()
def test_logits_equal_torchvisions(torchvision_pair: tuple[MaxViT, TorchvisionMaxVit]) -> None:
    model, reference = torchvision_pair
    x = images(64, 64)
    assert difference(model(x), reference(x)) < TOLERANCE


def test_gradients_equal_timms() -> None:
    model, reference = make_pair(*OPTIONS["plain"])
    x = images(32, 32)
    for net in (model, reference):
        net(x).square().sum().backward()
    theirs = {name: p.grad for name, p in reference.named_parameters()}
    for parameter in model.parameters():
        parameter.data.copy_(parameter.grad)
    written = to_format(model, "timm")
    for name, gradient in theirs.items():
        close = 1e-5 * gradient.abs().max() + 1e-7
        torch.testing.assert_close(written[name], gradient, rtol=1e-3, atol=close)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["maxvit_tiny_tf_224", "maxvit_small_tf_384"])
def test_named_model_equals_timms(name: str) -> None:
    depth = (1, 1, 1, 1)
    reference = randomise(timm.create_model(name, depths=depth, block_type=("M",) * 4))
    model = create_model(name, depth=depth).eval()
    load_pretrained(model, reference.state_dict())
    x = images(*model.image_size, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_torchvisions_named_model() -> None:
    reference = TorchvisionMaxVit(
        input_size=(224, 224),
        stem_channels=64,
        partition_size=7,
        block_channels=[64, 128, 256, 512],
        block_layers=[1, 1, 1, 1],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )
    model = create_model("maxvit_t", depth=(1, 1, 1, 1)).eval()
    load_pretrained(model, randomise(reference).state_dict())
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


def test_parameter_count_equals_torchvisions() -> None:
    with torch.device("meta"):
        model, reference = create_model("maxvit_t", num_classes=1000), torchvision_maxvit_t()
    theirs = sum(p.numel() for p in reference.parameters())
    assert sum(p.numel() for p in model.parameters()) == theirs == find_entry("maxvit_t").parameters


def torchvision_maxvit_t() -> nn.Module:
    from torchvision.models import maxvit_t

    return maxvit_t()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("maxvit_t", 30_919_624), ("maxvit_tiny_tf_224", 30_916_528), ("maxvit_small_tf_224", 68_927_956)],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("test_maxvit", (1, 1, 1, 1)),
        ("maxvit_nano_rw_256", (1, 2, 3, 1)),
        ("maxvit_rmlp_small_rw_224", (2, 1, 1, 1)),
        ("maxvit_rmlp_base_rw_224", (1, 1, 2, 1)),
        ("maxvit_tiny_pm_256", (1, 2, 1, 1)),
        ("maxxvit_rmlp_nano_rw_256", (1, 2, 1, 1)),
        ("maxxvit_rmlp_small_rw_256", (1, 1, 2, 1)),
        ("maxxvitv2_nano_rw_256", (1, 2, 1, 1)),
        ("maxxvitv2_rmlp_base_rw_224", (2, 1, 1, 1)),
        ("maxxvitv2_rmlp_large_rw_224", (1, 1, 1, 1)),
    ],
)
def test_timms_own_variants(name: str, depth: tuple[int, ...]) -> None:
    """Tables and networks of biases, MBConv and ConvNeXt, attention in turn, side by side and of grids."""
    torch.manual_seed(0)
    config = replace(model_cfgs[name.removesuffix("_256").removesuffix("_224")], depths=depth)
    reference = randomise(MaxxVit(config, img_size=96, num_classes=10))
    model = create_model(name, image_size=96, window_size=3, num_classes=10, depth=depth).eval()
    check_parity(model, reference, images(96, 96))


def test_all_of_timms_models_of_the_paper_are_named() -> None:
    assert set(list_models("maxvit_*_tf_*")) == set(timm.list_models("maxvit_*_tf_*"))


def test_the_examples_model_is_the_papers_small_one() -> None:
    with torch.device("meta"):
        model = MaxViT(
            num_classes=1000,
            dim_conv_stem=64,
            dim=96,
            dim_head=32,
            depth=(2, 2, 5, 2),
            window_size=7,
            mbconv_expansion_rate=4,
            mbconv_shrinkage_rate=0.25,
            dropout=0.1,
        )
    assert sum(p.numel() for p in model.parameters()) == find_entry("maxvit_small_tf_224").parameters
    assert model.image_size == (224, 224)


def test_weights_go_back_to_timm(pair: tuple[MaxViT, MaxxVit]) -> None:
    model, reference = pair
    written, state = to_format(model, "timm"), reference.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_weights_go_back_to_torchvision(torchvision_pair: tuple[MaxViT, TorchvisionMaxVit]) -> None:
    model, reference = torchvision_pair
    written, state = to_format(model, "torchvision"), reference.state_dict()
    assert {name for name in state if name not in written} == {
        name for name in state if name.endswith("relative_position_index")
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in written.items())


# Tables of offsets fit other windows.


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@torch.inference_mode()
@pytest.mark.parametrize("window", [(6, 6), (3, 3), (4, 6), (2, 5)])
def test_another_window_equals_timms(window: tuple[int, int]) -> None:
    source = make_timm()
    size = tuple(8 * extent for extent in window)
    reference = make_timm(img_size=size, transformer_window_size=window)
    reference.load_state_dict(checkpoint_filter_fn(source.state_dict(), reference))
    model = MaxViT(**{**OURS, "window_size": window}).eval()
    report = load_pretrained(model, source.state_dict())
    name = "stages.0.blocks.0.window.attention.bias.table"
    assert report.resized[name] == ((4, 4), window)
    assert len(report.resized) == 6
    assert difference(model(images(*size)), reference(images(*size))) < TOLERANCE
    with pytest.raises(ValueError, match="strictly"):
        load_pretrained(model, source.state_dict(), strict=True)


@torch.inference_mode()
def test_our_own_files_fit_other_windows_too() -> None:
    model, reference = make_pair(*OPTIONS["plain"])
    larger = MaxViT(**{**OURS, "window_size": 6}).eval()
    load_pretrained(larger, model.state_dict())
    again = MaxViT(**{**OURS, "window_size": 6}).eval()
    load_pretrained(again, reference.state_dict())
    x = images(48, 48)
    assert larger(x).equal(again(x))


@torch.inference_mode()
def test_torchvisions_file_fits_other_windows(torchvision_pair: tuple[MaxViT, TorchvisionMaxVit]) -> None:
    model, reference = torchvision_pair
    larger = MaxViT(**{**OURS, "window_size": 6}, **TORCHVISION).eval()
    report = load_pretrained(larger, reference.state_dict())
    assert set(report.resized.values()) == {((4, 4), (6, 6))}
    again = MaxViT(**{**OURS, "window_size": 6}, **TORCHVISION).eval()
    load_pretrained(again, model.state_dict())
    assert larger(images(48, 48)).equal(again(images(48, 48)))


def test_a_window_that_is_not_square_has_to_be_told() -> None:
    wide = MaxViT(**{**OURS, "window_size": (2, 5)})
    target = MaxViT(**OURS)
    with pytest.raises(ValueError, match="27 offsets belong to no square window"):
        load_pretrained(target, wide.state_dict())
    report = load_pretrained(target, wide.state_dict(), grid=(2, 5))
    assert set(report.resized.values()) == {((2, 5), (4, 4))}
    with pytest.raises(ValueError, match=r"a window of \(3, 5\) has 45 offsets, the table 27"):
        load_pretrained(target, wide.state_dict(), grid=(3, 5))


def test_a_square_count_of_a_window_that_is_not_square_is_not_guessed(
    torchvision_pair: tuple[MaxViT, TorchvisionMaxVit],
) -> None:
    """49 offsets are those of a window of 4 x 4 and of one of 1 x 25."""
    _, reference = torchvision_pair
    target = MaxViT(**{**OURS, "window_size": (1, 25)}, **TORCHVISION)
    with pytest.raises(ValueError, match=r"49 offsets may belong to a window of \(1, 25\) or of \(4, 4\)"):
        load_pretrained(target, reference.state_dict())
    report = load_pretrained(target, reference.state_dict(), grid=(4, 4))
    assert set(report.resized.values()) == {((4, 4), (1, 25))}


# What other programs get wrong.


@pytest.fixture
def model() -> MaxViT:
    return make_pair(*OPTIONS["plain"])[0]


def test_convolution_in_plain_steps(model: MaxViT) -> None:
    """Batch norm in front, GELU by tanh, the squeeze behind the second norm, a pooled shortcut."""
    conv = model.stages[1].blocks[0].conv
    x = torch.randn(2, 16, 8, 12)

    def norm(x: torch.Tensor, bn: nn.Module) -> torch.Tensor:
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-3)

    bottleneck = conv.bottleneck
    norm1, _, depthwise, norm2, _, squeeze = bottleneck.depthwise.layers
    y = norm(x, conv.norm.layers[0])
    y = F.conv2d(y, bottleneck.expand.weight[:, :, None, None])
    y = F.gelu(norm(y, norm1), approximate="tanh")
    y = F.conv2d(F.pad(y, (0, 1, 0, 1)), depthwise.weight, stride=2, groups=128)
    y = F.gelu(norm(y, norm2), approximate="tanh")
    gate = F.silu(F.linear(y.mean(dim=(2, 3)), squeeze.squeeze.weight, squeeze.squeeze.bias))
    gate = F.linear(gate, squeeze.excite.weight, squeeze.excite.bias).sigmoid()
    y = y * gate[:, :, None, None]
    y = F.conv2d(y, bottleneck.project.weight[:, :, None, None], bottleneck.project.bias)
    linear = conv.shortcut[1]
    y = y + F.conv2d(F.avg_pool2d(x, 2), linear.weight[:, :, None, None], linear.bias)
    got = conv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(got, y, rtol=1e-5, atol=1e-5)


def test_widths_of_the_convolution(model: MaxViT) -> None:
    """The bottleneck widens from the width that leaves, and the squeeze is a quarter of it."""
    first = model.stages[1].blocks[0].conv.bottleneck
    assert first.expand.weight.shape == (4 * 32, 16)
    assert first.depthwise.layers[5].squeeze.weight.shape == (8, 4 * 32)
    assert first.depthwise.layers[5].squeeze.bias is not None
    assert first.project.bias is not None


def test_stem_has_norm_and_activation(model: MaxViT) -> None:
    conv, norm, act, second = model.stem.layers
    assert conv.bias is not None
    assert isinstance(norm, nn.BatchNorm2d)
    assert act.approximate == "tanh"
    assert second.bias is not None


def test_a_stage_whose_width_stays_pools_its_shortcut(model: MaxViT) -> None:
    same = MaxViT(**{**OURS, "dim_conv_stem": 16})
    assert len(same.stages[0].blocks[0].conv.shortcut) == 1
    assert len(model.stages[0].blocks[0].conv.shortcut) == 2
    assert len(model.stages[1].blocks[1].conv.shortcut) == 0


def test_attention_has_biases(model: MaxViT) -> None:
    for block in model.stages[1].blocks:
        for part in (block.window, block.grid):
            assert part.attention.attention.to_qkv.bias is not None
            assert part.attention.attention.to_out.bias is not None


@torch.inference_mode()
def test_windows_see_neighbours_and_grids_see_far(model: MaxViT) -> None:
    block = model.stages[0].blocks[0]
    x = torch.randn(1, 8, 8, 16)
    changed = x.clone()
    changed[0, 0, 0] = torch.randn(16)
    for part, seen in (
        (block.window, {(y, x) for y in range(4) for x in range(4)}),
        (block.grid, {(y, x) for y in range(0, 8, 2) for x in range(0, 8, 2)}),
    ):
        moved = (part(changed) - part(x)).abs().amax(dim=-1)[0] > 0
        assert {tuple(place) for place in moved.nonzero().tolist()} == seen


@torch.inference_mode()
def test_head_is_norm_linear_tanh_linear(model: MaxViT) -> None:
    features = model.forward_features(images(32, 32))
    norm = model.fc_norm
    pooled = F.layer_norm(features.mean(dim=(2, 3)), (32,), norm.weight, norm.bias, eps=1e-5)
    hidden = F.linear(pooled, model.pre_logits[0].weight, model.pre_logits[0].bias).tanh()
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), hidden)
    torch.testing.assert_close(model(images(32, 32)), model.head(hidden))


def test_stochastic_depth_drops_samples() -> None:
    model = MaxViT(**OURS, drop_path=0.4)
    conv = model.stages[1].blocks[1].conv.train()
    torch.manual_seed(0)
    x = torch.randn(64, 4, 4, 32)
    kept = (conv(x) != x).flatten(1).any(dim=1)
    assert 20 < kept.sum() < 56


def test_same_padding_is_tensorflows() -> None:
    conv = halving_conv(1, 1, padding="same", bias=False)
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = x[0, 0, 2, 2] = 1
    assert conv(x)[0, 0].tolist() == [[2, 1], [1, 1]]


def test_no_weight_decay_on_tables(model: MaxViT) -> None:
    names = model.no_weight_decay()
    assert len(names) == 6
    assert all(name.endswith("bias.table") for name in names)


def test_without_bias_in_the_head() -> None:
    model = MaxViT(**OURS, head_bias=False)
    assert model.head.bias is None
    model.reset_classifier(3)
    assert model.head.bias is None
    assert model(images(32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 20}, "dim must be a multiple of dim_head, got dim=20 and dim_head=8"),
        ({"padding": "valid"}, "padding must be one of same, symmetric, mixed, max; got 'valid'"),
        ({"scale_by": "width"}, "scale_by must be one of head, dim; got 'width'"),
        ({"image_size": 40}, r"image size must be a multiple of \(32, 32\), got \(40, 40\)"),
        ({"attention": "windows"}, "attention must be one of in_turn, grid, side_by_side; got 'windows'"),
        ({"conv": "convnext"}, "got padding='same'"),
        ({"window_size": 0}, r"window_size must be .*, got 0"),
        (
            {"window_size": None, "image_size": 4},
            r"got \(0, 0\) for image size \(4, 4\)",
        ),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaxViT(**{**OURS, **wrong})


def test_a_map_that_is_no_multiple_of_the_windows_is_refused(model: MaxViT) -> None:
    with pytest.raises(ValueError, match=r"image size must be a multiple of \(32, 32\), got \(32, 40\)"):
        model(images(32, 40))
