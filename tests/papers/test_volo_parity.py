"""VOLO computes what timm's computes; outlook attention by plain loops, and what token labeling trains."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from timm.models import volo
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.volo import VOLO, DenseHead, OutlookAttention

OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (24, 48),
    "depth": (2, 1, 2),
    "heads": (2, 4),
    "stem_dim": 12,
}
THEIRS: dict[str, Any] = {
    "img_size": 64,
    "num_classes": 7,
    "layers": (2, 1, 2),
    "embed_dims": (24, 48, 48),
    "num_heads": (2, 4, 4),
    "stem_hidden_dim": 12,
    "downsamples": (True, False, False),
    "outlook_attention": (True, False, False),
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {"img_size": (64, 96)}),
    "feed-forward, biases": ({"mlp_ratio": 4, "qkv_bias": True}, {"mlp_ratio": 4, "qkv_bias": True}),
    "smaller patches": ({"patch_size": 4}, {"patch_size": 4}),
    "three class blocks": ({"cls_depth": 3}, {"post_layers": ("ca",) * 3}),
    "two stages": (
        {"depth": (1, 2)},
        {
            "layers": (1, 2),
            "embed_dims": (24, 48),
            "num_heads": (2, 4),
            "downsamples": (True, False),
            "outlook_attention": (True, False),
        },
    ),
}
FAMILY = Family(
    VOLO,
    volo.VOLO,
    OURS,
    THEIRS,
    OPTIONS,
    module="volo",
    named=[Named("volo_d1_224"), Named("volo_d4_224", {"image_size": 64}, {"img_size": 64})],
    maps=("not square",),
    norms=[(False, False), (True, True)],
)


@torch.inference_mode()
def test_features_and_maps_of_all_stages() -> None:
    model, reference = FAMILY.build("not square")
    load_pretrained(model, reference.state_dict(), grid="model")
    x = images(*model.image_size)
    features = model.forward_features(x)
    assert difference(features, reference.forward_features(x)) < TOLERANCE
    embedding = reference.forward_head(reference.forward_features(x), pre_logits=True)
    assert difference(model.forward_head(features, pre_logits=True), embedding) < TOLERANCE
    for norm in (False, True):
        ours = model.forward_intermediates(x, norm=norm, intermediates_only=True)
        theirs = reference.forward_intermediates(x, norm=norm, intermediates_only=True)
        for one, other in zip(ours, theirs, strict=True):
            # Maps are not normed, and grow.
            assert difference(one, other) < TOLERANCE * other.abs().max()
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [
        (i["num_chs"], i["reduction"]) for i in reference.feature_info
    ]


@torch.inference_mode()
def test_outlook_attention_in_plain_loops() -> None:
    """Each square's places exchange values by weights from its middle; a cell sums over its squares."""
    heads, dim, height, width = 2, 6, 4, 6
    attention = OutlookAttention(dim, heads=heads)
    randomise(attention)
    x = torch.randn(1, height, width, dim, generator=torch.Generator().manual_seed(0))
    found = attention(x)
    values = attention.to_v(x)[0]
    merged = torch.zeros(height, width, dim)
    # Squares of nine places around every second cell; places outside the map hold nothing.
    around = list(product((-1, 0, 1), repeat=2))
    for top, left in product(range(0, height, 2), range(0, width, 2)):
        mean = x[0, top : top + 2, left : left + 2].mean(dim=(0, 1))
        scores = attention.to_weights(mean).view(heads, 9, 9) * (dim // heads) ** -0.5
        weights = scores.softmax(dim=-1)
        places = [(top + down, left + right) for down, right in around]
        inside = [0 <= y < height and 0 <= z < width for y, z in places]
        for head in range(heads):
            part = slice(3 * head, 3 * head + 3)
            for asking, (y, z) in enumerate(places):
                for giving, (v, w) in enumerate(places):
                    if inside[asking] and inside[giving]:
                        merged[y, z, part] += weights[head, asking, giving] * values[v, w, part]
    torch.testing.assert_close(found[0], attention.to_out(merged))


@torch.inference_mode()
def test_logits_of_the_class_token_and_of_the_cells() -> None:
    """What the loss of token labeling trains is what timm's training returns beside its box."""
    model, reference = FAMILY.build("plain")
    load_pretrained(model, reference.state_dict())
    x = images(64, 64)
    tokens = model.forward_features(x)
    assert isinstance(model.head, DenseHead)
    logits, dense = model.head.image_and_cells(tokens)
    assert logits.shape == (2, 7)
    assert dense.shape == (2, 16, 7)
    assert difference(logits, reference.head(reference.forward_features(x)[:, 0])) < TOLERANCE
    assert difference(dense, reference.aux_head(reference.forward_features(x)[:, 1:])) < TOLERANCE
    torch.testing.assert_close(model(x), logits + dense.max(dim=1).values / 2)


def test_both_classifiers_are_replaced() -> None:
    model = VOLO(**OURS)
    model.reset_classifier(5)
    assert model(images(64, 64)).shape == (2, 5)
    assert [part.out_features for part in model.head.modules() if isinstance(part, nn.Linear)] == [5, 5]
    model.reset_classifier(0)
    assert model(images(64, 64)).shape == (2, 48)
    with pytest.warns(UserWarning, match=r"head\.classifier\.weight"):
        load_pretrained(VOLO(**{**OURS, "num_classes": 3}), VOLO(**OURS).state_dict())


@torch.inference_mode()
def test_positions_are_resized() -> None:
    reference = randomise(volo.VOLO(**THEIRS))
    model = VOLO(**{**OURS, "image_size": 96}).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.resized == {"stages.1.down.positions.table": ((4, 4), (6, 6))}
    assert model(images(96, 96)).isfinite().all()


def test_stochastic_depth_spares_the_outlookers() -> None:
    model = VOLO(**OURS, drop_path=0.4)
    reference = volo.VOLO(**THEIRS, drop_path_rate=0.4)
    rates = [part.p for part in model.modules() if isinstance(part, DropPath)]
    theirs = [module.drop_path1.drop_prob for stage in reference.network[2:] for module in stage]
    assert rates == pytest.approx(theirs)
    assert rates == pytest.approx([0.2, 0.3, 0.4])
    assert all(isinstance(block.drop_path1, nn.Identity) for block in reference.network[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"depth": (2,)}, r"depth must be that of two stages at least, got \(2,\)"),
        ({"patch_size": 7}, "patch size must be a multiple of 2, the stride of the stem, got 7"),
        ({"image_size": 72}, r"image size must be a multiple of \(16, 16\), got \(72, 72\)"),
        ({"heads": (2, 5)}, "dim must be a multiple of heads, got dim=48 and heads=5"),
        ({"heads": (5, 4)}, "dim must be a multiple of heads, got dim=24 and heads=5"),
        ({"dim": (24, 48, 48)}, r"must be those of fine and of coarse cells, got dim=\(24, 48, 48\)"),
        ({"heads": (4,)}, r"must be those of fine and of coarse cells, got .* heads=\(4,\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VOLO(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 4, "dim": (32, 64), "depth": (1, 1), "heads": (2, 4)}
    model = create_model("volo_d1_224", channels=1, num_classes=10, cls_depth=1, stem_dim=16, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
