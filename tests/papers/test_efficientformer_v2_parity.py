"""EfficientFormerV2 computes what timm's computes; its parts against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import efficientformer_v2 as theirs
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE as SINGLE
from tests.papers.reference import difference, images, randomise, settle
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.efficientformer_v2 import (
    ConvolvedAttention,
    EfficientFormerV2,
    HalvedAttention,
    LocalGlobalQuery,
)
from vit_pytorch.layers.attention import TalkingHeads
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.tokens import OneTokenHead
from vit_pytorch.registry import find_entry

# In double precision: random attention and many convolutions make much of the rounding of single.
TOLERANCE = 1e-10
# Maps of 16, 8, 4 and 2 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 24, 32),
    "depth": (1, 2, 2, 3),
    "attention_depth": 2,
    "distilled": True,
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "embed_dims": (8, 16, 24, 32),
    "depths": (1, 2, 2, 3),
    "num_vit": 2,
}
RATIOS = (3, (2, 4), 2.5, (1, 2, 3))
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "odd maps": ({"image_size": (50, 90)}, {"img_size": (50, 90)}),
    "one block attends": ({"attention_depth": 1}, {"num_vit": 1}),
    "feed-forwards": ({"mlp_ratio": RATIOS}, {"mlp_ratios": RATIOS}),
    "no LayerScale": ({"layer_scale": None}, {"layer_scale_init_value": None}),
    "one classifier": ({"distilled": False}, {"distillation": False}),
}


def shortened(name: str) -> Named:
    """Leave as many blocks as attend in the last two stages, one more in the first of them, one in others."""
    attending = find_entry(name).config["attention_depth"]
    depth = (1, 1, attending + 1, attending)
    return Named(name, {"depth": depth, "mlp_ratio": 3}, {"depths": depth, "mlp_ratios": 3})


FAMILY = Family(
    EfficientFormerV2,
    theirs.EfficientFormerV2,
    OURS,
    THEIRS,
    OPTIONS,
    module="efficientformer_v2",
    named=[*map(shortened, list_models("efficientformerv2_*")), Named("efficientformerv2_s0")],
    maps=("not square",),
    trained=("plain", "feed-forwards"),
    dtype=torch.float64,
)


@torch.inference_mode()
def test_single_precision_is_near() -> None:
    """With statistics of a batch in the batch norms, as trained models have them."""
    model, reference = FAMILY.build("not square")
    settle(reference.float(), images(64, 96, batch=4, seed=5))
    load_pretrained(model.float(), reference.state_dict(), grid="model")
    x = images(64, 96)
    assert difference(model(x), reference(x)) < SINGLE


@torch.inference_mode()
def test_logits_are_the_mean_of_two_classifiers() -> None:
    model, reference = FAMILY.build("plain")
    load_pretrained(model, reference.state_dict(), grid="model")
    assert isinstance(model.head, OneTokenHead)
    x = images(64, 64).double()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    ours, want = model.head.separate(pooled), (reference.head(pooled), reference.head_dist(pooled))
    assert all(difference(one, other) < TOLERANCE for one, other in zip(ours, want, strict=True))
    assert not torch.allclose(*ours)
    assert difference(model(x), (want[0] + want[1]) / 2) < TOLERANCE


def test_a_model_with_one_classifier_keeps_its_own() -> None:
    """The published one of labels is half of what was trained."""
    _, reference = FAMILY.build("plain")
    model = EfficientFormerV2(**{**OURS, "distilled": False})
    own = model.head.weight.clone()
    with pytest.warns(UserWarning, match="head.weight, head.bias are not from the state dict"):
        report = load_pretrained(model, reference.float().state_dict(), grid="model")
    assert report.kept == ("head.weight", "head.bias")
    assert model.head.weight.equal(own)


@torch.inference_mode()
def test_smaller_images_have_the_biases_of_their_offsets() -> None:
    """A model of that size, with corners of the tables, computes the same."""
    model = randomise(EfficientFormerV2(**OURS)).double()
    small = EfficientFormerV2(**{**OURS, "image_size": (32, 64)}).double().eval()
    state, sizes = model.state_dict(), dict(small.named_parameters())
    for name in [name for name in state if name.endswith("bias.table")]:
        side = int(state[name].shape[1] ** 0.5)
        rows = sizes[name].shape[1] // side
        state[name] = state[name].unflatten(1, (side, side))[:, :rows].flatten(1)
    small.load_state_dict(state)
    x = images(32, 64).double()
    assert difference(model(x), small(x)) < TOLERANCE
    with pytest.raises(ValueError, match=r"image size must be at most \(64, 64\), got \(64, 96\)"):
        model(images(64, 96).double())


@torch.inference_mode()
def test_attention_in_plain_loops() -> None:
    """Heads talk before the softmax and after it, and values are convolved, too."""
    attention = ConvolvedAttention(6, 6, grid=(3, 4), heads=2, widths=(4, 5), kernel=lambda: TalkingHeads(2))
    randomise(attention)
    x = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    q, k, v = (part(x).view(12, 2, -1) for part in (attention.to_q, attention.to_k, attention.to_v))
    assert [part.shape[2] for part in (q, k, v)] == [4, 4, 5]
    table = attention.bias.table.view(2, 3, 4)
    scores = torch.empty(12, 12, 2)
    for i in range(12):
        for j in range(12):
            rows, columns = abs(i // 4 - j // 4), abs(i % 4 - j % 4)
            scores[i, j] = (q[i] * k[j]).sum(1) / 2 + table[:, rows, columns]
    kernel = attention.kernel
    weights = kernel.mix_weights(kernel.mix_scores(scores).softmax(1))
    mixed = torch.einsum("ijh,jhe->ihe", weights, v).reshape(1, 3, 4, 10)
    want = attention.to_out(attention.act(mixed + attention.conv(attention.to_v(x))))
    torch.testing.assert_close(attention(x), want, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
def test_attention_at_half_the_resolution(size: tuple[int, int]) -> None:
    """It is stretched to the map, also one of odd size, before the activation."""
    attention = randomise(HalvedAttention(6, 6, grid=(5, 6), heads=2, widths=(4, 5)))
    assert attention.bias.grid == (3, 3)
    x = torch.randn(1, *size, 6, generator=torch.Generator().manual_seed(0))
    small = attention.mix(attention.halve(x))
    assert small.shape[1:3] == (-(-size[0] // 2), -(-size[1] // 2))
    large = nn.functional.interpolate(small.permute(0, 3, 1, 2), size, mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(attention(x), attention.to_out(attention.act(large)))


@torch.inference_mode()
def test_queries_of_a_smaller_map() -> None:
    """Every second cell, and what is around it."""
    query = randomise(LocalGlobalQuery(3, 8, 2))
    x = torch.randn(1, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    found, conv = query(x), query.conv.layers[0]
    padded = nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    for row in range(3):
        for column in range(2):
            around = padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            local = (around * conv.weight[:, 0].permute(1, 2, 0)).sum(dim=(0, 1)) + conv.bias
            want = query.to_out((local + x[0, 2 * row, 2 * column])[None])[0]
            torch.testing.assert_close(found[0, row, column], want, rtol=1e-5, atol=1e-5)


def test_which_blocks_attend() -> None:
    model = EfficientFormerV2(**{**OURS, "attention_depth": 1})
    found = [
        [type(getattr(block, "attention", None)).__name__ for block in stage.blocks]  # type: ignore[union-attr]
        for stage in model.stages
    ]
    none = "NoneType"
    assert found == [
        [none],
        [none, none],
        [none, "HalvedAttention"],
        [none, none, "ConvolvedAttention"],
    ]
    assert [stage.down.attention is None for stage in list(model.stages)[1:]] == [True, True, False]  # type: ignore[union-attr]


def test_stochastic_depth_rises_to_the_last_block() -> None:
    model = EfficientFormerV2(**OURS, drop_path=0.7)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [
        [],
        pytest.approx([0.1, 0.2]),
        pytest.approx([0.3, 0.4]),
        pytest.approx([0.5, 0.6, 0.7]),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (1, 1)}, r"one for each of at least two stages, got \(8, 16, 24, 32\) and \(1, 1\)"),
        ({"attention_depth": 3}, r"at most the blocks of each of the last two stages, got 3 and \(2, 3\)"),
        ({"dim": (9, 16, 24, 32)}, "dim of the first stage must be even, got 9"),
        ({"mlp_ratio": (4, 4)}, r"mlp_ratio must be one number, .* got \(4, 4\) for \(1, 2, 2, 3\) blocks"),
        ({"mlp_ratio": (4, 4, (4, 4, 4), 4)}, r"mlp_ratio must be one number, .* for \(1, 2, 2, 3\) blocks"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientFormerV2(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "dim": (32, 64),
        "depth": (2, 3),
        "mlp_ratio": 4,
        "heads": 4,
        "dim_key": 16,
    }
    model = create_model("efficientformerv2_s0", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
