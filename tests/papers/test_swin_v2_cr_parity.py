"""timm's second Swin V2: ours computes what it computes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.models import swin_transformer_v2_cr as theirs
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.learning import accuracy_on_digits
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
    shapes_only,
)
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.swin_v2_cr import SwinTransformerV2CR

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
}
# our options, timm's for them
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "norms of stages": ({"norm_stages": True}, {"extra_norm_stage": True}),
    "norms of every second block": (
        {"norm_period": 2, "depth": (3, 2, 1)},
        {"extra_norm_period": 2, "depths": (3, 2, 1)},
    ),
    "maps that are no multiple": ({"image_size": (52, 76)}, {"img_size": (52, 76)}),
    "windows larger than the map": ({"window_size": 12}, {"window_size": 12}),
    "wider than the map is high": ({"image_size": (16, 64)}, {"img_size": (16, 64)}),
    "a window for each stage": ({"window_size": (8, 4, 2)}, {"window_size": (8, 4, 2)}),
    "windows not square": (
        {"window_size": ((2, 4), (4, 2), (3, 3))},
        {"window_size": ((2, 4), (4, 2), (3, 3))},
    ),
    "an eighth of the map": ({"window_size": 2}, {"window_size": None}),
    "no classes": ({"num_classes": 0}, {"num_classes": 0}),
    "narrow": ({"mlp_ratio": 2.5, "patch_size": 2}, {"mlp_ratio": 2.5, "patch_size": 2}),
}


def without_dropout(model: SwinTransformerV2CR, reference: nn.Module) -> None:
    """Let the network of timm's positions drop nothing in training."""
    for part in reference.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


FAMILY = Family(
    SwinTransformerV2CR,
    theirs.SwinTransformerV2Cr,
    OURS,
    THEIRS,
    OPTIONS,
    module="swin_transformer_v2_cr",
    named=[
        Named("swinv2_cr_tiny_ns_224"),
        Named("swinv2_cr_small_ns_256", {"depth": (1, 1, 2, 1)}, {"depths": (1, 1, 2, 1)}),
    ],
    maps=("norms of stages", "maps that are no multiple"),
    trained=("norms of stages",),
    prepare=without_dropout,
)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(32, 32), (60, 92), (8, 64)])
def test_other_sizes_equal_timms(size: tuple[int, int]) -> None:
    """Windows are those of the customary input, on maps that they do not divide, and smaller ones."""
    model, reference = FAMILY.build("plain", dynamic_img_size=True)
    load_pretrained(model, reference.state_dict())
    assert difference(model(images(*size)), reference(images(*size))) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("window", [6, 3])
def test_another_window_equals_timms(window: int) -> None:
    """The network computes the biases of any."""
    _, reference = FAMILY.build("plain")
    state = reference.state_dict()
    reference.set_input_size((16 * window, 16 * window), window_size=window)
    model = SwinTransformerV2CR(**{**OURS, "window_size": window, "image_size": 16 * window}).eval()
    assert load_pretrained(model, state).resized == {}
    x = images(16 * window, 16 * window)
    assert difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize("name", timm.list_models("swinv2_cr_*"))
def test_windows_are_timms(name: str) -> None:
    with shapes_only():
        model, reference = create_model(name), timm.create_model(name)
    windows = [stage.blocks[0].attention.partition.size for stage in model.stages]  # type: ignore[union-attr]
    assert windows == [tuple(stage.blocks[0].window_size) for stage in reference.stages]


@torch.inference_mode()
def test_earlier_files() -> None:
    """They have tau, the inverse of the factor, and the classifier as `head`; timm's reader agrees."""
    model, reference = FAMILY.build("plain")
    state = {}
    for name, tensor in reference.state_dict().items():
        if name.endswith("logit_scale"):
            name, tensor = name.replace("logit_scale", "tau"), 1 / tensor.exp()
        state[name.replace("head.fc", "head")] = tensor
    report = load_pretrained(model, state)
    assert (report.format, report.kept, report.dropped) == ("timm", (), ())
    reference.load_state_dict(theirs.checkpoint_filter_fn(dict(state), reference))
    assert difference(model(images(64, 64)), reference(images(64, 64))) < TOLERANCE


@torch.inference_mode()
def test_position_bias_by_its_formula() -> None:
    """The network of the logarithms of offsets in cells, without a bound."""
    model = randomise(SwinTransformerV2CR(**OURS, position_dim=16))
    bias = model.stages[0].blocks[0].attention.bias
    assert bias.network[0].out_features == 16
    for query, key in ((0, 15), (5, 6), (12, 3)):
        offset = (query // 4 - key // 4, query % 4 - key % 4)
        logs = torch.tensor([math.copysign(math.log(1 + abs(o)), o) for o in offset])
        torch.testing.assert_close(bias()[:, query, key], bias.network(logs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "ends"),
    [
        ({}, [[0, 0, 0], [0, 0], [0, 1]]),
        ({"norm_stages": True}, [[0, 0, 1], [0, 1], [0, 1]]),
        ({"norm_period": 2}, [[0, 1, 0], [0, 1], [0, 1]]),
        ({"norm_period": 3}, [[0, 0, 1], [0, 0], [0, 1]]),
    ],
)
def test_blocks_that_end_with_a_norm(options: dict[str, Any], ends: list[list[int]]) -> None:
    model = SwinTransformerV2CR(**{**OURS, "depth": (3, 2, 2), **options})
    found = [[int(isinstance(b.norm_out, nn.LayerNorm)) for b in stage.blocks] for stage in model.stages]  # type: ignore[union-attr]
    assert found == ends


def test_blocks_start_as_the_identity() -> None:
    block = SwinTransformerV2CR(**OURS).stages[0].blocks[1]
    x = torch.randn(1, 16, 16, 24)
    assert block(x).equal(x)


def test_stochastic_depth_rises_over_all_blocks() -> None:
    model = SwinTransformerV2CR(**OURS, drop_path=0.5)
    rates = [part.p for part in model.modules() if isinstance(part, DropPath)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window_size": (4, 4)}, r"one for each of 3 stages, got \(4, 4\)"),
        ({"norm_period": 0}, r"norm_period must be an integer in \[1, \d+\] or None, got 0"),
        ({"heads": (2, 3)}, r"heads must be one for each of 3 stages, got \(2, 3\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwinTransformerV2CR(**{**OURS, **wrong})


def test_learns_the_digits() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "dim": 32, "depth": (2, 2), "heads": (2, 4), "window_size": 4}
    model = create_model("swinv2_cr_tiny_ns_224", channels=1, num_classes=10, **sizes)
    assert accuracy_on_digits(model, size=32, epochs=20, goal=0.95) > 0.95
