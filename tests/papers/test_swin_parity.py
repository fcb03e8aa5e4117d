"""Swin and Swin V2 compute what timm's and transformers' models compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import nn

from tests.papers.reference import (
    TOLERANCE,
    check_gradients,
    check_layer_decay,
    difference,
    images,
    randomise,
)
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.base import VisionModel
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
    "pretrained_window_sizes": (0, 0, 0),
}
KINDS: dict[str, tuple[type[VisionModel], type[nn.Module]]] = {
    "v1": (SwinTransformer, TimmSwin),
    "v2": (SwinTransformerV2, TimmSwinV2),
}
BOTH = pytest.mark.parametrize("kind", KINDS)
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
PAIRS = [(kind, option) for option, (_, _, kinds) in OPTIONS.items() for kind in kinds]


def randomised(model: nn.Module) -> nn.Module:
    """Draw all weights, and V2's logarithms of the factor on cosines from 1.5 to 3."""
    randomise(model)
    for name, parameter in model.named_parameters():
        if name.endswith("logit_scale"):
            nn.init.uniform_(parameter, 1.5, 3.0, generator=torch.Generator().manual_seed(3))
    return model


def make_timm(kind: str, **changes: Any) -> nn.Module:
    options = {**THEIRS, **changes}
    if kind == "v1":
        del options["pretrained_window_sizes"]
    return randomised(KINDS[kind][1](**options))


def make_pair(kind: str, option: str, **theirs: Any) -> tuple[VisionModel, Any]:
    """Ours and timm's with the same weights."""
    ours, changes, _ = OPTIONS[option]
    reference = make_timm(kind, **changes, **theirs)
    model = KINDS[kind][0](**{**OURS, **ours}).eval()
    load_pretrained(model, reference.state_dict(), grid="model")
    return model, reference


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "option"), PAIRS)
def test_logits_and_maps_equal_timms(kind: str, option: str) -> None:
    model, reference = make_pair(kind, option)
    x = images(*model.image_size)
    assert difference(model(x), reference(x)) < TOLERANCE
    last, ours = model.forward_intermediates(x)
    expected, theirs = reference.forward_intermediates(x)
    assert len(ours) == 3
    # Maps are not normed between stages, and grow.
    for a, b in zip([last, *ours], [expected.permute(0, 3, 1, 2), *theirs], strict=True):
        assert difference(a, b) < TOLERANCE * b.abs().max()
    assert [(i["num_chs"], i["reduction"]) for i in model.feature_info] == [
        (i["num_chs"], i["reduction"]) for i in reference.feature_info
    ]


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (60, 92), (8, 64)])
@BOTH
def test_other_sizes_equal_timms(kind: str, size: tuple[int, int]) -> None:
    """Windows are those of the customary input, on maps that they do not divide, and smaller ones."""
    model, reference = make_pair(kind, "plain", dynamic_img_size=True)
    assert difference(model(images(*size)), reference(images(*size))) < TOLERANCE


@torch.inference_mode()
def test_factors_are_bounded_as_timms() -> None:
    """In double precision, since a factor of 100 makes as much more of rounding."""
    reference = make_timm("v2").double()
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
def test_gradients_equal_timms(kind: str) -> None:
    model, reference = make_pair(kind, "maps that are no multiple")
    x = images(*model.image_size)
    check_gradients(model, reference, x, "timm")


@BOTH
def test_layer_decay_is_that_of_timm(kind: str) -> None:
    check_layer_decay(*make_pair(kind, "plain"), "timm")


def test_all_of_timms_models_are_named() -> None:
    assert set(list_models("swin_*")) == set(timm.list_models(module="swin_transformer"))
    assert set(list_models("swinv2_*_window*")) == set(timm.list_models(module="swin_transformer_v2"))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["swin_s3_tiny_224", "swinv2_base_window12to16_192to256"])
def test_a_named_model_equals_timms(name: str) -> None:
    depth = (2, 2, 2, 2)
    reference = randomised(timm.create_model(name, depths=depth))
    model = create_model(name, depth=depth).eval()
    load_pretrained(model, reference.state_dict())
    x = images(*model.image_size, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


@BOTH
def test_weights_go_back_to_timm(kind: str) -> None:
    model, reference = make_pair(kind, "plain")
    state = reference.state_dict()
    back = to_format(model, "timm")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@BOTH
def test_the_authors_names(kind: str) -> None:
    """Merging ends a stage, the classifier is `head`, and buffers are among the weights."""
    model, reference = make_pair(kind, "plain")
    state = {}
    for name, tensor in reference.state_dict().items():
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        state[name.replace("head.fc", "head")] = tensor
    assert to_format(model, "microsoft").keys() == state.keys()
    buffers = {"layers.0.blocks.1.attn_mask", "layers.0.blocks.0.attn.relative_position_index"}
    again = KINDS[kind][0](**OURS).eval()
    report = load_pretrained(again, {"model": {**state, **dict.fromkeys(buffers, torch.ones(1))}})  # type: ignore[dict-item]
    assert report.format == "microsoft"
    assert set(report.dropped) == buffers
    assert again(images(64, 64)).equal(model(images(64, 64)))


@torch.inference_mode()
@BOTH
def test_transformers_models(kind: str) -> None:
    options = {
        "image_size": 64,
        "embed_dim": 24,
        "depths": [2, 2, 2],
        "num_heads": [2, 3, 4],
        "window_size": 4,
        "num_labels": 7,
    }
    if kind == "v1":
        reference: Any = transformers.SwinForImageClassification(transformers.SwinConfig(**options))
    else:
        reference = transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**options))
    randomised(reference)
    model = KINDS[kind][0](**OURS).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.format == "transformers"
    assert difference(model(images(64, 64)), reference(images(64, 64)).logits) < TOLERANCE
    back, state = to_format(model, "transformers"), reference.state_dict()
    assert all(back.pop(name).equal(tensor) for name, tensor in state.items() if name in back)
    assert not back
    bare = KINDS[kind][0](**{**OURS, "num_classes": 0}).eval()
    load_pretrained(bare, (reference.swin if kind == "v1" else reference.swinv2).state_dict())
    assert bare(images(64, 64)).equal(model.forward_head(model.forward_features(images(64, 64)), True))


def test_files_of_transformers(tmp_path: Any) -> None:
    """What is on the Hub has other names than the model that it is loaded into."""
    config = transformers.SwinConfig(
        image_size=64, embed_dim=24, depths=[2, 2, 2], num_heads=[2, 3, 4], window_size=4, num_labels=7
    )
    reference = randomised(transformers.SwinForImageClassification(config))
    reference.save_pretrained(tmp_path)
    model = SwinTransformer(**OURS).eval()
    report = load_pretrained(model, tmp_path)
    assert report.format == "transformers-files"
    assert difference(model(images(64, 64)), reference(images(64, 64)).logits) < TOLERANCE


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize("window", [6, 3])
@BOTH
def test_another_window_equals_timms(kind: str, window: int) -> None:
    """Tables of offsets are resized; the network of V2 needs nothing."""
    source = make_timm(kind)
    reference = make_timm(kind)
    size = (16 * window, 16 * window)
    reference.load_state_dict(source.state_dict())
    reference.set_input_size(img_size=size, window_size=window)
    model = KINDS[kind][0](**{**OURS, "window_size": window, "image_size": size}).eval()
    report = load_pretrained(model, source.state_dict())
    name = "stages.0.blocks.0.attention.bias.table"
    assert report.resized.get(name) == (((4, 4), (window, window)) if kind == "v1" else None)
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
def test_what_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="one for each of 3 stages, got"):
        KINDS[kind][0](**{**OURS, "window_size": (4, 4)})
    with pytest.raises(ValueError, match=r"must be a multiple of \(4, 4\), got \(62, 64\)"):
        KINDS[kind][0](**OURS)(images(62, 64))
