"""EdgeNeXt computes what timm's computes; its split convolutions against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.edgenext import EdgeNeXt as TimmEdgeNeXt
from timm.models.edgenext import checkpoint_filter_fn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.edgenext import EdgeNeXt, SplitConvs
from vit_pytorch.pretrained import to_format

# Maps of 16, 8, 4 and 2 cells; the third stage's groups have 12, 12 and 8 channels.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 32, 64),
    "depth": (1, 2, 1, 2),
    "heads": (1, 2, 4, 4),
    "kernel_size": (3, 5, 3, 7),
    "scales": (2, 2, 3, 4),
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "dims": (8, 16, 32, 64),
    "depths": (1, 2, 1, 2),
    "heads": (1, 2, 4, 4),
    "kernel_sizes": (3, 5, 3, 7),
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "not a multiple": ({"image_size": (75, 109)}, {}),
    "timm's own": (
        {"stem": "overlap", "down": "depthwise", "conv_bias": False, "depth": (1, 2, 2, 2)},
        {"stem_type": "overlap", "downsample_block": True, "conv_bias": False, "depths": (1, 2, 2, 2)},
    ),
    "more attention": (
        {"global_depth": (1, 0, 1, 2), "positions": (True, False, True, True), "mlp_ratio": 2},
        {
            "global_block_counts": (1, 0, 1, 2),
            "use_pos_emb": (True, False, True, True),
            "expand_ratio": 2,
        },
    ),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
}
SHALLOW = ({"depth": (1, 2, 2, 2)}, {"depths": (1, 2, 2, 2)})
FAMILY = Family(
    EdgeNeXt,
    TimmEdgeNeXt,
    OURS,
    THEIRS,
    OPTIONS,
    module="edgenext",
    named=[
        Named("edgenext_xx_small"),
        *(Named(f"edgenext_{size}", *SHALLOW) for size in ("x_small", "small", "base", "small_rw")),
    ],
    maps=tuple(OPTIONS),
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (50, 131)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    """The waves are those of the map of the image."""
    model, reference = FAMILY.pair("plain")
    x = images(*size)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_the_authors() -> None:
    """timm's reader of the authors' files reads what is written; loading does, too."""
    model = randomise(EdgeNeXt(**OURS))
    written = to_format(model, "edgenext")
    again = EdgeNeXt(**OURS).eval()
    assert load_pretrained(again, written).format == "edgenext"
    reference = TimmEdgeNeXt(**THEIRS).eval()
    reference.load_state_dict(checkpoint_filter_fn({"model_ema": written}, reference))
    x = images(64, 64)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_groups_are_mixed_one_after_the_other() -> None:
    """Each with what the one before became, in loops over cells; the last stays as it is."""
    split = SplitConvs(8, 3)
    randomise(split)
    x = torch.randn(1, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    before, done = torch.zeros(4, 5, 3), []
    for part, conv in zip(((0, 3), (3, 6)), split.convs, strict=True):
        group = x[0, ..., slice(*part)] + before
        kernel, bias = conv.layers[0].weight[:, 0], conv.layers[0].bias
        before = torch.empty(4, 5, 3)
        for y in range(4):
            for z in range(5):
                near = [
                    (y + i, z + j, i + 1, j + 1)
                    for i in (-1, 0, 1)
                    for j in (-1, 0, 1)
                    if 0 <= y + i < 4 and 0 <= z + j < 5
                ]
                before[y, z] = bias + sum(group[a, b] * kernel[:, i, j] for a, b, i, j in near)
        done.append(before)
    torch.testing.assert_close(split(x)[0], torch.cat([*done, x[0, ..., 6:]], dim=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scales": (2, 2, 3, 1)}, "scales must be at least 2, and split the channels, got 1 for 64"),
        ({"dim": (8, 16, 32, 36), "scales": (2, 2, 3, 25)}, "and split the channels, got 25 for 36"),
        ({"global_depth": (0, 3, 1, 1)}, r"at most depth \(1, 2, 1, 2\), got \(0, 3, 1, 1\)"),
        ({"down": "depthwise"}, r"fewer than depth \(1, 2, 1, 2\) after .* got \(0, 1, 1, 1\)"),
        ({"kernel_size": (3, 4, 3, 7)}, r"kernel_size must be odd, got \(3, 4, 3, 7\)"),
        ({"heads": (1, 3, 4, 4)}, "dims must be multiples of heads"),
        ({"depth": (1, 2, 1)}, "dim must be one number or one for each of 3 stages"),
        (
            {"down": "depthwise", "dim": (8, 12, 32, 64), "depth": (1, 2, 2, 2)},
            "down='depthwise' needs a multiple of the channels before, got 8 and 12",
        ),
        ({"image_size": 31}, r"an image must be at least \(32, 32\), got image size \(31, 31\)"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EdgeNeXt(**{**OURS, **options})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": (32, 64), "depth": (1, 2), "global_depth": (0, 1), "heads": (1, 4)}
    parts: dict[str, Any] = {
        "kernel_size": (3, 3),
        "scales": (2, 2),
        "positions": (False, True),
        "stem": "overlap",
    }
    model = EdgeNeXt(image_size=32, channels=1, num_classes=10, layer_scale=1.0, **sizes, **parts)
    assert accuracy_on_digits(model, size=32, epochs=6) > 0.9
