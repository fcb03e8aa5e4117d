"""CoaT computes what timm's computes; its parts against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import coat as theirs

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.coat import CoaT, Factorised, RelativeConvs, exchange
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.registry import find_entry

# Maps of 16, 8, 4 and 2 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 24, 24, 24),
    "depth": (1, 2, 1, 2),
    "parallel_depth": 2,
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "patch_size": 4,
    "num_classes": 7,
    "embed_dims": (16, 24, 24, 24),
    "serial_depths": (1, 2, 1, 2),
    "parallel_depth": 2,
}
LITE = {"dim": (16, 24, 32, 40), "parallel_depth": None}
TIMM_LITE = {"embed_dims": (16, 24, 32, 40), "parallel_depth": 0}
WINDOWS = {"heads": 4, "kernel_sizes": (5, 3), "kernel_heads": (1, 3)}
TIMM_WINDOWS = {"num_heads": 4, "crpe_window": {5: 1, 3: 3}}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "no bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "other kernels": (WINDOWS, TIMM_WINDOWS),
    "feed-forward": ({"mlp_ratio": (3, 2, 2, 2)}, {"mlp_ratios": (3, 2, 2, 2)}),
    "lite": (LITE, TIMM_LITE),
    "lite, not square": ({**LITE, "image_size": (96, 32)}, {**TIMM_LITE, "img_size": (96, 32)}),
    "lite, feed-forward": ({**LITE, "mlp_ratio": (8, 8, 4, 3)}, {**TIMM_LITE, "mlp_ratios": (8, 8, 4, 3)}),
}

NAMES = {"depth": "serial_depths"}


def shortened(name: str) -> Named:
    """Leave one serial block in each scale, and two parallel ones; timm has `coat_small` whole only."""
    less: dict[str, Any] = {} if name == "coat_small" else {"depth": (1, 1, 1, 1)}
    if less and find_entry(name).config["parallel_depth"]:
        less["parallel_depth"] = 2
    return Named(name, less, {NAMES.get(n, n): v for n, v in less.items()})


FAMILY = Family(
    CoaT,
    theirs.CoaT,
    OURS,
    THEIRS,
    OPTIONS,
    module="coat",
    named=[*map(shortened, list_models("coat_*")), Named("coat_tiny"), Named("coat_lite_tiny")],
    trained=("plain", "lite"),
)
KINDS = ("plain", "lite")


@torch.inference_mode()
@pytest.mark.parametrize("option", ["not square", "lite, not square"])
@pytest.mark.parametrize("indices", [None, [0], [0, 2], [1], [3]])
def test_maps_of_scales(option: str, indices: list[int] | None) -> None:
    """Those that parallel blocks have are taken after them; with and without the norm of each scale."""
    model, reference = FAMILY.build(option)
    load_pretrained(model, reference.state_dict())
    x = images(*model.image_size)
    for norm in (False, True):
        options: dict[str, Any] = {"indices": indices, "norm": norm, "intermediates_only": True}
        ours = model.forward_intermediates(x, stop_early=True, **options)
        expected = reference.forward_intermediates(x, **options)
        for one, other in zip(ours, expected, strict=True):
            assert difference(one, other) < TOLERANCE * max(1, other.abs().max())
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [
        (i["num_chs"], i["reduction"]) for i in reference.feature_info
    ]


@torch.inference_mode()
@pytest.mark.parametrize("option", KINDS)
def test_features_are_the_class_tokens_and_the_last_map(option: str) -> None:
    model, reference = FAMILY.build(option)
    load_pretrained(model, reference.state_dict())
    x = images(64, 64)
    features, expected = model.forward_features(x), reference.forward_features(x)
    scales = [expected] if option == "lite" else expected
    want = torch.cat([*(scale[:, :1] for scale in scales), scales[-1][:, 1:]], dim=1)
    assert model.num_prefix_tokens == len(scales)
    assert difference(features, want) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("option", KINDS)
def test_what_is_shared_is_read_under_any_of_its_names(option: str) -> None:
    """Files of safetensors hold one of them; where several differ, they are no weights of this model."""
    model, reference = FAMILY.build(option)
    state = reference.state_dict()
    shared = ("cpe1.", "crpe2.", "cpe4.")
    less = {name: tensor for name, tensor in state.items() if not name.startswith(shared)}
    assert len(less) < len(state)
    assert load_pretrained(model, less).kept == ()
    x = images(64, 64)
    assert difference(model(x), reference(x)) < TOLERANCE
    name = "serial_blocks2.1.factoratt_crpe.crpe.conv_list.0.weight"
    with pytest.raises(ValueError, match=f"{name} is shared by blocks, and differs"):
        load_pretrained(model, {**state, name: state[name] + 1})


@torch.inference_mode()
def test_norms_that_lite_does_not_use_are_left() -> None:
    """The authors' files have them; timm's reader leaves them, too."""
    model, reference = FAMILY.build("lite")
    idle = {
        f"norm{k}.{p}": torch.ones(width)
        for k, width in ((1, 16), (2, 24), (3, 32))
        for p in ("weight", "bias")
    }
    report = load_pretrained(model, {**reference.state_dict(), **idle})
    assert set(report.dropped) == set(idle)
    x = images(64, 64)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("option", KINDS)
def test_images_of_any_size(option: str) -> None:
    """A model built for that size computes the same, with the same weights."""
    model, reference = FAMILY.build(option)
    load_pretrained(model, reference.state_dict())
    other = theirs.CoaT(**{**THEIRS, **OPTIONS[option][1], "img_size": (96, 128)}).eval()
    other.load_state_dict(reference.state_dict())
    x = images(96, 128)
    assert difference(model(x), other(x)) < TOLERANCE
    with pytest.raises(ValueError, match=r"image size must be a multiple of \(32, 32\), got \(64, 80\)"):
        model(images(64, 80))


@torch.inference_mode()
def test_attention_in_plain_loops() -> None:
    """Each query reads, by its channels, what the channels of keys have gathered from all tokens."""
    q, k, v = torch.randn(3, 1, 2, 7, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = Factorised()(q, k, v)
    for head in range(2):
        want = torch.zeros(7, 4)
        for channel in range(4):
            weights = k[0, head, :, channel].softmax(dim=0)
            gathered = sum(weights[token] * v[0, head, token] for token in range(7))
            want += q[0, head, :, channel, None] * gathered / 2
        torch.testing.assert_close(found[0, head], want)


@torch.inference_mode()
def test_relative_positions_in_plain_loops() -> None:
    """A query times the values around it, each by the weight of its offset; the class token has none."""
    relative = randomise(RelativeConvs(2, (3, 5), (1, 2)))
    q, v = torch.randn(2, 1, 3, 13, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = relative(q, v, (3, 4))
    assert not found[:, :, 0].any()
    for head in range(3):
        conv, first, far = (relative.convs[0], 0, 1) if head == 0 else (relative.convs[1], head - 1, 2)
        for channel in range(2):
            kernel, bias = conv.weight[2 * first + channel, 0], conv.bias[2 * first + channel]
            for cell in range(12):
                row, column = divmod(cell, 4)
                total = bias.clone()
                for y in range(max(row - far, 0), min(row + far + 1, 3)):
                    for x in range(max(column - far, 0), min(column + far + 1, 4)):
                        offset = kernel[y - row + far, x - column + far]
                        total += offset * v[0, head, 1 + 4 * y + x, channel]
                want = q[0, head, 1 + cell, channel] * total
                torch.testing.assert_close(found[0, head, 1 + cell, channel], want, rtol=1e-4, atol=1e-5)


def test_scales_exchange_means_and_class_tokens() -> None:
    """A map of constant cells stays so on another scale; class tokens are added as they are."""
    inputs = [BlockInputs(grid=(4, 8)), BlockInputs(grid=(2, 4)), BlockInputs(grid=(1, 2))]
    scales = [
        torch.full((1, 1 + 32, 3), 1.0),
        torch.full((1, 1 + 8, 3), 10.0),
        torch.full((1, 1 + 2, 3), 100.0),
    ]
    for tokens in scales:
        tokens[:, 0] *= 2
    for own, summed in zip(scales, exchange(scales, inputs), strict=True):
        assert summed.shape == own.shape
        torch.testing.assert_close(summed[:, 1:], torch.full_like(own[:, 1:], 111.0))
        torch.testing.assert_close(summed[:, 0], torch.full_like(own[:, 0], 222.0))


def test_blocks_of_a_scale_share_its_positions() -> None:
    model = CoaT(**OURS)
    names = [name for name, _ in model.named_parameters() if "relative" in name or "positions" in name]
    # a kernel and a bias of positions, and of three sizes of kernels, for each scale
    assert len(names) == 4 * (2 + 3 * 2)
    assert all(name.startswith("stages.") and ".shared." in name for name in names)


def test_stochastic_depth_is_the_same_in_every_block() -> None:
    model = CoaT(**OURS, drop_path=0.1)
    assert [part.p for part in model.modules() if isinstance(part, DropPath)] == [0.1] * (6 + 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": (16, 24, 24)}, r"one for each of 4 scales, got \(16, 24, 24\) and \(1, 2, 1, 2\)"),
        ({"dim": (16, 24, 24, 32)}, r"must have equal dim and mlp_ratio, got \(16, 24, 24, 32\)"),
        ({"mlp_ratio": (4, 4, 2, 2)}, r"must have equal dim and mlp_ratio, got .* and \(4, 4, 2, 2\)"),
        ({"kernel_heads": (2, 3, 2)}, r"8 heads in all, got \(2, 3, 2\) and \(3, 5, 7\)"),
        ({"kernel_sizes": (3, 5)}, r"one number for each of kernel_sizes, .* got \(2, 3, 3\) and \(3, 5\)"),
        ({"kernel_sizes": (3, 5, 6)}, r"kernel_sizes must be odd, got \(3, 5, 6\)"),
        ({"dim": (12, 24, 24, 24)}, "dim must be a multiple of heads, got dim=12 and heads=8"),
        ({"image_size": 48}, r"image size must be a multiple of \(32, 32\), got \(48, 48\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoaT(**{**OURS, **wrong})


@pytest.mark.parametrize("parallel_depth", [None, 1])
def test_learns_the_digits(parallel_depth: int | None) -> None:
    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "dim": (24, 48, 48, 48),
        "depth": (1, 1, 1, 1),
        "patch_size": 4,
        "mlp_ratio": 2,
    }
    name = "coat_tiny" if parallel_depth else "coat_lite_tiny"
    more = {"parallel_depth": parallel_depth} if parallel_depth else {}
    model = create_model(name, channels=1, num_classes=10, **sizes, **more)
    assert accuracy_on_digits(model, size=32, epochs=8, goal=0.93) > 0.93
