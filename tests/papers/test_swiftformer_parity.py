"""SwiftFormer computes what timm's computes; its attention against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import swiftformer as theirs

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import list_models, load_pretrained
from vit_pytorch.layers.tokens import OneTokenHead
from vit_pytorch.pretrained import to_format
from vit_pytorch.swiftformer import AdditiveAttention, SwiftFormer

# Maps of 16, 8 and 4 cells.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 24),
    "depth": (1, 2, 2),
    "distilled": True,
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dims": (8, 16, 24),
    "layers": (1, 2, 2),
    "downsamples": (False, True, True),
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "odd maps": ({"image_size": (50, 37)}, {}),
    "without factors": (
        {"layer_scale": None, "mlp_ratio": 2.5},
        {"use_layer_scale": False, "mlp_ratios": 2.5},
    ),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
FAMILY = Family(
    SwiftFormer,
    theirs.SwiftFormer,
    OURS,
    THEIRS,
    OPTIONS,
    module="swiftformer",
    named=[
        Named("swiftformer_xs"),
        *(Named(name, {"depth": (1, 2, 1, 1)}, {"layers": (1, 2, 1, 1)}) for name in list_models("swiftf*")),
    ],
    maps=("not square", "odd maps"),
    norms=[(False, False), (True, True)],
    trained=("plain",),
    batch=8,
)


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model = randomise(SwiftFormer(**OURS), seed=3)
    written = to_format(model, "SwiftFormer")
    reference = theirs.SwiftFormer(**THEIRS).eval()
    reference.load_state_dict(theirs.checkpoint_filter_fn({"model": dict(written)}, reference))
    again = SwiftFormer(**OURS).eval()
    report = load_pretrained(again, written)
    assert (report.format, report.kept) == ("SwiftFormer", ())
    x = images(64, 64)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE * max(1, reference(x).abs().max())


@torch.inference_mode()
def test_two_classifiers() -> None:
    """timm returns both, in training for distillation; the logits are their mean."""
    model, reference = FAMILY.pair("plain")
    assert isinstance(model.head, OneTokenHead)
    pooled = model.forward_head(model.forward_features(images(64, 64)), pre_logits=True)
    labels, teacher = model.head.separate(pooled)
    assert difference(labels, reference.head(pooled)) < TOLERANCE
    assert difference(teacher, reference.head_dist(pooled)) < TOLERANCE


@torch.inference_mode()
def test_one_query_for_all() -> None:
    """Equations 6 to 8 in loops over cells, the scale of the scores among them."""
    attention = randomise(AdditiveAttention(6))
    assert isinstance(attention, AdditiveAttention)
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    cells = [x[y, z] for y in range(3) for z in range(4)]
    queries = [attention.to_q(cell) for cell in cells]
    queries = [q / q.norm() for q in queries]
    scores = torch.stack([attention.to_scores(q)[0] * 6**-0.5 for q in queries])
    scores = scores / scores.norm()
    query = sum(score * q for score, q in zip(scores, queries, strict=True))
    rows = []
    for cell, q in zip(cells, queries, strict=True):
        key = attention.to_k(cell)
        rows.append(attention.to_out(attention.project(query * key / key.norm()) + q))
    assert difference(attention(x[None])[0], torch.stack(rows).unflatten(0, (3, 4))) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": (1, 2)}, r"one for each stage, got \(8, 16, 24\) and \(1, 2\)"),
        ({"dim": (9, 16, 24)}, "dim of the first stage must be even, got 9"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SwiftFormer(**{**OURS, **options})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = SwiftFormer(
        image_size=32, channels=1, num_classes=10, dim=(32, 64), depth=(1, 2), layer_scale=1.0
    )
    assert accuracy_on_digits(model, size=32, epochs=6) > 0.9
