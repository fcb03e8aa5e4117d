"""PVT v2 computes what timm's and transformers' compute; its parts against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import pvt_v2 as theirs
from transformers import PvtV2Config, PvtV2ForImageClassification

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.layers.attention import CrossAttention
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.windows import SubsampledAttention, convolved_summary
from vit_pytorch.pretrained import to_format
from vit_pytorch.pvt_v2 import ConvolvedFeedForward, PVTv2, pooled_summary

# Maps of 16, 8, 4 and 2 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 24, 32, 40),
    "depth": (1, 2, 1, 2),
    "heads": (1, 2, 4, 5),
    "mlp_ratio": (3, 2, 2, 2),
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dims": (16, 24, 32, 40),
    "depths": (1, 2, 1, 2),
    "num_heads": (1, 2, 4, 5),
    "mlp_ratios": (3, 2, 2, 2),
}
LINEAR = {"reduction": None}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "squares do not fill maps": ({"image_size": (75, 90)}, {}),
    "other squares": ({"reduction": (3, 1, 2, 1)}, {"sr_ratios": (3, 1, 2, 1)}),
    "no bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "linear": (LINEAR, {"linear": True}),
    "linear, odd maps": ({**LINEAR, "image_size": (50, 91)}, {"linear": True}),
}
KINDS = ("plain", "linear")
FAMILY = Family(
    PVTv2,
    theirs.PyramidVisionTransformerV2,
    OURS,
    THEIRS,
    OPTIONS,
    module="pvt_v2",
    named=[
        *(Named(name, {"depth": (1,) * 4}, {"depths": (1,) * 4}) for name in list_models("pvt_v2_*")),
        Named("pvt_v2_b0"),
    ],
    maps=("not square", "linear"),
    trained=("plain", "linear"),
)


@torch.inference_mode()
@pytest.mark.parametrize("option", [*KINDS, "no bias"])
def test_equals_transformers(option: str) -> None:
    """Which has one epsilon for all norms."""
    ours, options = OPTIONS[option]
    config = PvtV2Config(
        num_labels=7,
        hidden_sizes=THEIRS["embed_dims"],
        depths=THEIRS["depths"],
        num_attention_heads=THEIRS["num_heads"],
        mlp_ratios=THEIRS["mlp_ratios"],
        linear_attention=options.get("linear", False),
        qkv_bias=options.get("qkv_bias", True),
        layer_norm_eps=1e-5,
    )
    reference = randomise(PvtV2ForImageClassification(config))
    model = PVTv2(**{**OURS, **ours, "norm_eps": 1e-5}).eval()
    assert load_pretrained(model, reference.state_dict()).format == "transformers"
    x = images(64, 96)
    assert difference(model(x), reference(x).logits) < TOLERANCE
    back, state = to_format(model, "transformers"), reference.state_dict()
    assert back.keys() == state.keys()
    assert all(back[key].equal(state[key]) for key in state)


@torch.inference_mode()
@pytest.mark.parametrize("option", KINDS)
def test_the_authors_names_are_those_that_timm_reads(option: str) -> None:
    model, reference = FAMILY.build(option)
    load_pretrained(model, reference.state_dict())
    published = to_format(model, "PVT")
    fresh = FAMILY.build(option)[1]
    fresh.load_state_dict(theirs.checkpoint_filter_fn(dict(published), fresh), strict=True)
    for key, tensor in reference.state_dict().items():
        assert fresh.state_dict()[key].equal(tensor)
    other = FAMILY.build(option)[0]
    assert load_pretrained(other, published, strict=True).format == "PVT"
    assert all(other.state_dict()[key].equal(tensor) for key, tensor in model.state_dict().items())


@torch.inference_mode()
@pytest.mark.parametrize("side", [1, 2])
def test_attention_in_plain_loops(side: int) -> None:
    """Each cell reads what summaries of squares say; a row of cells beyond the last square is in none."""
    attention = SubsampledAttention(CrossAttention(4, heads=2, dim_head=2), convolved_summary(4, side))
    randomise(attention)
    x = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    if side == 1:
        cells = list(x.flatten(1, 2)[0])
    else:
        conv, norm = attention.summary[0].layers[0], attention.summary[1]
        cells = []
        for row in (0, 2):
            for column in (0, 2):
                square = x[0, row : row + 2, column : column + 2].permute(2, 0, 1)
                cells.append(norm((conv.weight * square).sum(dim=(1, 2, 3)) + conv.bias))
    inner, mixed = attention.attention, torch.empty(5, 4, 4)
    k, v = inner.to_kv(torch.stack(cells)).chunk(2, dim=1)
    for row in range(5):
        for column in range(4):
            q = inner.to_q(x[0, row, column])
            for head in range(2):
                own = slice(2 * head, 2 * head + 2)
                weights = ((k[:, own] * q[own]).sum(dim=1) / 2**0.5).softmax(dim=0)
                mixed[row, column, own] = weights @ v[:, own]
    torch.testing.assert_close(attention(x)[0], inner.to_out(mixed), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(14, 21), (10, 5)])
def test_summary_of_linear_attention_in_plain_loops(size: tuple[int, int]) -> None:
    """Means of 7 x 7 parts, which overlap if they do not divide the map."""
    summary = randomise(pooled_summary(3))
    x = torch.randn(1, *size, 3, generator=torch.Generator().manual_seed(0))
    found = summary(x)
    assert found.shape == (1, 7, 7, 3)
    for row in range(7):
        for column in range(7):
            (top, bottom), (left, right) = (
                (i * extent // 7, -(-(i + 1) * extent // 7))
                for i, extent in zip((row, column), size, strict=True)
            )
            mean = x[0, top:bottom, left:right].mean(dim=(0, 1))
            want = torch.nn.functional.gelu(summary.norm(summary.project(mean)))
            torch.testing.assert_close(found[0, row, column], want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("relu", [False, True])
def test_feed_forward_in_plain_loops(relu: bool) -> None:
    """Cells around the map are zero, which tells those at its edge where they are."""
    feedforward = randomise(ConvolvedFeedForward(3, 5, relu=relu))
    conv = feedforward.conv.layers[0]
    x = torch.randn(1, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    hidden = feedforward.to_hidden(x)
    padded = torch.nn.functional.pad(hidden.relu() if relu else hidden, (0, 0, 1, 1, 1, 1))
    for row in range(3):
        for column in range(4):
            around = padded[0, row : row + 3, column : column + 3]
            mixed = (around * conv.weight[:, 0].permute(1, 2, 0)).sum(dim=(0, 1)) + conv.bias
            want = feedforward.to_out(torch.nn.functional.gelu(mixed))
            torch.testing.assert_close(feedforward(x)[0, row, column], want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_least_image() -> None:
    """In which the first map, which is rounded up, holds one square."""
    model, reference = FAMILY.build("plain")
    load_pretrained(model, reference.state_dict())
    x = images(29, 40)
    assert difference(model(x), reference(x)) < TOLERANCE
    with pytest.raises(ValueError, match=r"an image must be at least \(29, 29\), got image size \(28, 40\)"):
        model(images(28, 40))


def test_stochastic_depth_rises_to_the_last_block() -> None:
    model = PVTv2(**OURS, drop_path=0.5)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [[], pytest.approx([0.1, 0.2]), pytest.approx([0.3]), pytest.approx([0.4, 0.5])]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (1, 1)}, r"one for each stage, got \(16, 24, 32, 40\) and \(1, 1\)"),
        ({"heads": (1, 2)}, r"heads must be one for each of 4 stages, got \(1, 2\)"),
        ({"heads": (1, 2, 4, 6)}, "dims must be multiples of heads"),
        ({"reduction": (8, 4)}, r"reduction must be one number or one for each of 4 stages, got \(8, 4\)"),
        ({"mlp_ratio": (8, 4)}, r"mlp_ratio must be one number or one for each of 4 stages, got \(8, 4\)"),
        ({"image_size": 28}, r"an image must be at least \(29, 29\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PVTv2(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "dim": (32, 64), "depth": (2, 2), "heads": (1, 2), "reduction": (2, 1)}
    model = create_model("pvt_v2_b0", channels=1, num_classes=10, mlp_ratio=4, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
