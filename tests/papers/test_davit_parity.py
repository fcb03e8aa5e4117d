"""DaViT computes what timm's and transformers' compute; attention between channels against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.davit import DaVit, checkpoint_filter_fn
from transformers import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.davit import BetweenChannels, DaViT
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.pretrained import to_format

# Maps of 16, 8 and 4 cells: windows that do not divide them.
OURS: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (24, 32, 48),
    "depth": (1, 2, 1),
    "heads": (2, 4, 3),
    "window_size": 3,
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dims": (24, 32, 48),
    "depths": (1, 2, 1),
    "num_heads": (2, 4, 3),
    "window_size": 3,
}
FLORENCE: dict[str, Any] = {"down_kernel_size": 3, "channel_scale": "tokens"}
TIMM_FLORENCE: dict[str, Any] = {"down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "not square": ({"image_size": (64, 96)}, {}),
    "odd maps": ({"image_size": (50, 37)}, {}),
    "windows that divide": ({"window_size": 4}, {"window_size": 4}),
    "feed-forward, no bias": ({"mlp_ratio": 3, "qkv_bias": False}, {"mlp_ratio": 3, "qkv_bias": False}),
    "Florence-2": (FLORENCE, TIMM_FLORENCE),
    "Florence-2, odd maps": ({**FLORENCE, "image_size": (50, 37)}, TIMM_FLORENCE),
    "scale by tokens alone": ({"channel_scale": "tokens"}, {"channel_attn_v2": True}),
    "scale by heads under names": ({"down_kernel_size": 3}, {"down_kernel_size": 3, "named_blocks": True}),
}
FAMILY = Family(
    DaViT,
    DaVit,
    OURS,
    THEIRS,
    OPTIONS,
    module="davit",
    named=[Named("davit_tiny"), Named("davit_base_fl", size=(160, 224))],
    maps=("odd maps", "Florence-2"),
    trained=("plain",),
)


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["davit", "Florence-2"])
def test_weights_of_the_authors(layout: str) -> None:
    """timm's reader of the authors' files reads what is written; loading does, too, beside other weights."""
    classes = {"num_classes": 7 if layout == "davit" else 0}
    ours, theirs = OPTIONS["plain" if layout == "davit" else "Florence-2"]
    model = DaViT(**{**OURS, **ours, **classes})
    randomise(model)
    reference = DaVit(**{**THEIRS, **theirs, **classes}).eval()
    if layout == "Florence-2":
        with pytest.raises(ValueError, match="has no norm after pooling, and the model's is trained"):
            to_format(model, layout)
        model.fc_norm.reset_parameters()
    written = to_format(model, layout)
    left = reference.load_state_dict(checkpoint_filter_fn(dict(written), reference), strict=False)
    assert left.missing_keys == ([] if layout == "davit" else ["head.norm.weight", "head.norm.bias"])
    again = DaViT(**{**OURS, **ours, **classes}).eval()
    beside = {"language_model.shared.weight": torch.ones(2, 2)} if layout == "Florence-2" else {}
    report = load_pretrained(again, {**written, **beside})
    assert (report.format, report.kept) == (layout, ())
    assert report.dropped == tuple(f"/{name}" for name in beside)
    x = images(64, 64)
    assert again(x).equal(model(x))
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_weights_of_transformers() -> None:
    config = Florence2VisionConfig(
        embed_dim=(24, 32, 48),
        depths=(1, 2, 1),
        num_heads=(2, 4, 3),
        num_groups=(2, 4, 3),
        window_size=3,
        patch_size=(7, 3, 3),
        patch_stride=(4, 2, 2),
        patch_padding=(3, 1, 1),
        patch_prenorm=(False, True, True),
    )
    reference = randomise(Florence2VisionBackbone(config))
    model = DaViT(**{**OURS, **FLORENCE, "num_classes": 0}).eval()
    state = {f"model.vision_tower.{name}": tensor for name, tensor in reference.state_dict().items()}
    assert load_pretrained(model, state).format == "transformers Florence-2"
    x = images(50, 37)
    theirs = reference(x).last_hidden_state
    assert difference(model.forward_features(x), theirs) < TOLERANCE * theirs.abs().max()
    written = to_format(model, "transformers Florence-2")
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


@torch.inference_mode()
@pytest.mark.parametrize("per_token", [False, True])
def test_equation_3_in_plain_loops(per_token: bool) -> None:
    """Each channel of a head takes from the channels of that head, by products over all cells."""
    heads, cells, dim = 2, 15, 4
    q, k, v = torch.randn(3, 1, heads, cells, dim, generator=torch.Generator().manual_seed(0)).unbind(0)
    found = BetweenChannels(per_token=per_token)(q, k, v)
    scale = (cells if per_token else dim) ** -0.5
    for head in range(heads):
        for channel in range(dim):
            scores = [(q[0, head, :, channel] * k[0, head, :, other]).sum() * scale for other in range(dim)]
            weights = torch.stack(scores).softmax(0)
            want = sum(weights[other] * v[0, head, :, other] for other in range(dim))
            torch.testing.assert_close(found[0, head, :, channel], want)


def test_channels_see_the_whole_map_and_windows_do_not() -> None:
    """A far cell changes another one only through the second block of a pair."""
    model = randomise(DaViT(**OURS))
    (pair,) = model.stages[0].blocks
    x = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(0))
    moved = x.clone()
    moved[0, 15, 15] += 1
    assert pair.spatial(x)[0, 0, 0].equal(pair.spatial(moved)[0, 0, 0])
    assert not torch.allclose(pair.channel(x)[0, 0, 0], pair.channel(moved)[0, 0, 0])


def test_both_blocks_of_a_pair_drop_alike() -> None:
    model = DaViT(**OURS, drop_path=0.3)
    rates = [[part.p for part in stage.modules() if isinstance(part, DropPath)] for stage in model.stages]
    assert rates == [[], [pytest.approx(0.1)] * 2 + [pytest.approx(0.2)] * 2, [pytest.approx(0.3)] * 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channel_scale": "dim"}, "channel_scale must be one of head, tokens; got 'dim'"),
        ({"heads": (2, 4)}, r"heads must be one for each of 3 stages, got \(2, 4\)"),
        ({"dim": (24, 32)}, r"dim must be one number or one for each of 3 stages, got \(24, 32\)"),
        ({"mlp_ratio": (4, 4)}, r"mlp_ratio must be one number or one for each of 3 stages, got \(4, 4\)"),
        ({"heads": None}, r"dims must be multiples of 32, the head dimension, got \(24, 32, 48\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DaViT(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "dim": (32, 64), "depth": (1, 1), "heads": (2, 4), "window_size": 4}
    model = create_model("davit_tiny", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=10, goal=0.95) > 0.95
