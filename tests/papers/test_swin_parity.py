"""Swin and Swin V2 compute what timm's and transformers' models compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2

from tests.papers.family import Family, Named
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.swin import SwinTransformer
from vit_pytorch.swin_v2 import SwinTransformerV2

OURS: dict[str, Any] = {
    "num_classes": 7,
    "dim": 24,
    "depth": (2, 2, 2),
    "heads": (2, 3, 4),
    "window_size": 4,
    "image_size": 64,
}
THEIRS: dict[str, Any] = {
    "num_classes": 7,
    "embed_dim": 24,
    "depths": (2, 2, 2),
    "num_heads": (2, 3, 4),
    "window_size": 4,
    "img_size": 64,
    "drop_path_rate": 0.0,
}
# our options, timm's for them, and who has them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, {}, ("v1", "v2")),
    "maps that are no multiple": ({"image_size": (52, 76)}, {"img_size": (52, 76)}, ("v1", "v2")),
    "windows larger than the map": ({"window_size": 12}, {"window_size": 12}, ("v1", "v2")),
    "wider than the map is high": ({"image_size": (16, 64)}, {"img_size": (16, 64)}, ("v1", "v2")),
    "a window for each stage": (
        {"window_size": (8, 4, 2)},
        {"window_size": (8, 4, 2)},
        ("v1", "v2"),
    ),
    "windows not square": (
        {"window_size": ((2, 4), (4, 2), (3, 3))},
        {"window_size": ((2, 4), (4, 2), (3, 3))},
        ("v1", "v2"),
    ),
    "no biases": ({"qkv_bias": False}, {"qkv_bias": False}, ("v1", "v2")),
    "narrow": ({"mlp_ratio": 2.5, "patch_size": 2}, {"mlp_ratio": 2.5, "patch_size": 2}, ("v1", "v2")),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}, ("v1", "v2")),
    "heads of their own": (
        {"dim_head": (6, 8, 4), "mlp_ratio": (1, 2, 3)},
        {"head_dim": (6, 8, 4), "mlp_ratio": (1, 2, 3)},
        ("v1",),
    ),
    "trained with smaller windows": (
        {"pretrained_window_size": (3, 2, 5)},
        {"pretrained_window_sizes": (3, 2, 5)},
        ("v2",),
    ),
}


def options_of(kind: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return {name: (ours, theirs) for name, (ours, theirs, kinds) in OPTIONS.items() if kind in kinds}


V1 = Family(
    SwinTransformer,
    TimmSwin,
    OURS,
    THEIRS,
    options_of("v1"),
    module="swin_transformer",
    named=[Named("swin_s3_tiny_224", {"depth": (2, 2, 2, 2)}, {"depths": (2, 2, 2, 2)})],
    maps=("plain", "maps that are no multiple", "windows not square", "heads of their own"),
    trained=("plain",),
)
V2 = Family(
    SwinTransformerV2,
    TimmSwinV2,
    OURS,
    {**THEIRS, "pretrained_window_sizes": (0, 0, 0)},
    options_of("v2"),
    module="swin_transformer_v2",
    named=[
        Named("swinv2_base_window12to16_192to256", {"depth": (2, 2, 2, 2)}, {"depths": (2, 2, 2, 2)}),
    ],
    maps=("plain", "maps that are no multiple", "windows not square", "trained with smaller windows"),
    trained=("plain",),
)
BOTH = pytest.mark.parametrize("kind", [V1, V2], ids=str)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (60, 92), (8, 64)])
@BOTH
def test_other_sizes_equal_timms(kind: Family, size: tuple[int, int]) -> None:
    """Windows are those of the customary input, on maps that they do not divide, and smaller ones."""
    model, reference = kind.pair("plain", dynamic_img_size=True)
    assert difference(model(images(*size)), reference(images(*size))) < TOLERANCE


@torch.inference_mode()
def test_factors_are_bounded_as_timms() -> None:
    """In double precision, since a factor of 100 makes as much more of rounding."""
    _, reference = V2.build("plain")
    reference.double()
    factors = [p for name, p in reference.named_parameters() if name.endswith("logit_scale")]
    for factor in factors:
        factor += 3
    assert any(math.log(100) < factor.max() for factor in factors)
    assert any(math.log(100) > factor.min() for factor in factors)
    model = SwinTransformerV2(**OURS).double().eval()
    load_pretrained(model, reference.state_dict())
    x = images(64, 64).double()
    assert difference(model(x), reference(x)) < 1e-8


@BOTH
def test_the_authors_names(kind: Family) -> None:
    """Merging ends a stage, the classifier is `head`, and buffers are among the weights."""
    model, reference = kind.pair("plain")
    state = {}
    for name, tensor in reference.state_dict().items():
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        state[name.replace("head.fc", "head")] = tensor
    assert to_format(model, "microsoft").keys() == state.keys()
    buffers = {"layers.0.blocks.1.attn_mask", "layers.0.blocks.0.attn.relative_position_index"}
    again = kind.model(**OURS).eval()
    report = load_pretrained(again, {"model": {**state, **dict.fromkeys(buffers, torch.ones(1))}})  # type: ignore[dict-item]
    assert report.format == "microsoft"
    assert set(report.dropped) == buffers
    assert again(images(64, 64)).equal(model(images(64, 64)))


@torch.inference_mode()
@BOTH
def test_transformers_models(kind: Family) -> None:
    options = {
        "image_size": 64,
        "embed_dim": 24,
        "depths": [2, 2, 2],
        "num_heads": [2, 3, 4],
        "window_size": 4,
        "num_labels": 7,
    }
    if kind is V1:
        reference: Any = transformers.SwinForImageClassification(transformers.SwinConfig(**options))
    else:
        reference = transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**options))
    randomise(reference)
    model = kind.model(**OURS).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.format == "transformers"
    assert difference(model(images(64, 64)), reference(images(64, 64)).logits) < TOLERANCE
    back, state = to_format(model, "transformers"), reference.state_dict()
    assert all(back.pop(name).equal(tensor) for name, tensor in state.items() if name in back)
    assert not back
    bare = kind.model(**{**OURS, "num_classes": 0}).eval()
    load_pretrained(bare, (reference.swin if kind is V1 else reference.swinv2).state_dict())
    assert bare(images(64, 64)).equal(model.forward_head(model.forward_features(images(64, 64)), True))


def test_files_of_transformers(tmp_path: Any) -> None:
    """What is on the Hub has other names than the model that it is loaded into."""
    config = transformers.SwinConfig(
        image_size=64, embed_dim=24, depths=[2, 2, 2], num_heads=[2, 3, 4], window_size=4, num_labels=7
    )
    reference = randomise(transformers.SwinForImageClassification(config))
    reference.save_pretrained(tmp_path)
    model = SwinTransformer(**OURS).eval()
    report = load_pretrained(model, tmp_path)
    assert report.format == "transformers-files"
    assert difference(model(images(64, 64)), reference(images(64, 64)).logits) < TOLERANCE


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("window", [6, 3])
@BOTH
def test_another_window_equals_timms(kind: Family, window: int) -> None:
    """Tables of offsets are resized; the network of V2 needs nothing."""
    source = kind.build("plain")[1].state_dict()
    _, reference = kind.build("plain")
    size = (16 * window, 16 * window)
    reference.set_input_size(img_size=size, window_size=window)
    model = kind.model(**{**OURS, "window_size": window, "image_size": size}).eval()
    report = load_pretrained(model, source)
    name = "stages.0.blocks.0.attention.bias.table"
    assert report.resized.get(name) == (((4, 4), (window, window)) if kind is V1 else None)
    assert difference(model(images(*size)), reference(images(*size))) < TOLERANCE


@torch.inference_mode()
def test_shifted_windows_in_plain_loops() -> None:
    """A cell sees those of its shifted window that were its neighbours before the shift."""
    model = SwinTransformer(**OURS).eval()
    attention = model.stages[0].blocks[1].attention
    x = images(8, 8)[:, :1].repeat(1, 24, 1, 1).permute(0, 2, 3, 1)
    base = attention(x)
    for row, column in ((0, 0), (2, 2), (5, 7), (7, 0)):
        changed = x.clone()
        changed[:, row, column] += torch.linspace(-1, 1, 24)
        seen = (attention(changed) - base).abs().amax(dim=(0, 3)) > 1e-7
        band = [[i for i in range(8) if (i + 2) // 4 == (place + 2) // 4] for place in (row, column)]
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[band[0][0] : band[0][-1] + 1, band[1][0] : band[1][-1] + 1] = True
        assert seen.equal(expected)


def test_position_bias_of_v2_by_its_formula() -> None:
    """Equation 4 with the authors' constants, and offsets measured by the window of the training."""
    model = SwinTransformerV2(**OURS, pretrained_window_size=(3, 3, 3))
    bias = model.stages[0].blocks[0].attention.bias
    table = bias()
    for query, key in ((0, 15), (5, 6), (12, 3)):
        offset = [(query // 4 - key // 4) / 2 * 8, (query % 4 - key % 4) / 2 * 8]
        logs = torch.tensor([math.copysign(math.log2(1 + abs(o)) / 3, o) for o in offset])
        expected = 16 * bias.network(logs).sigmoid()
        torch.testing.assert_close(table[:, query, key], expected, rtol=1e-5, atol=1e-6)


def test_blocks_of_v2_start_as_the_identity() -> None:
    block = SwinTransformerV2(**OURS).stages[0].blocks[1]
    x = torch.randn(1, 16, 16, 24)
    assert block(x).equal(x)


@BOTH
def test_what_is_refused(kind: Family) -> None:
    with pytest.raises(ValueError, match="one for each of 3 stages, got"):
        kind.model(**{**OURS, "window_size": (4, 4)})
    with pytest.raises(ValueError, match=r"must be a multiple of \(4, 4\), got \(62, 64\)"):
        kind.model(**OURS)(images(62, 64))
