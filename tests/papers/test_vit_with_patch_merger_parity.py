"""The PatchMerger computes its closed form, in a ViT that computes what timm's computes around it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT as PlainViT
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry
from vit_pytorch.vit_with_patch_merger import PatchMerger, ViT

SMALL: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 4,
    "heads": 3,
    "mlp_dim": 96,
    "dim_head": 16,
}


def merge(merger: PatchMerger, x: Tensor, scale: float) -> Tensor:
    """Merge one token of one sample at a time: softmax(scale * W LN(x)^T) LN(x)."""
    out = torch.empty(len(x), *merger.queries.shape)
    for b, tokens in enumerate(x):
        mean, spread = tokens.mean(dim=1, keepdim=True), tokens.var(dim=1, keepdim=True, correction=0)
        normed = (tokens - mean) / (spread + 1e-6).sqrt() * merger.norm.weight + merger.norm.bias
        for m, query in enumerate(merger.queries):
            parts = [math.exp(scale * float(query @ token)) for token in normed]
            out[b, m] = sum(part / sum(parts) * token for part, token in zip(parts, normed, strict=True))
    return out


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1.0, 24**-0.5])
def test_equals_the_closed_form(scale: float) -> None:
    merger = PatchMerger(24, 5, scale=scale)
    randomise(merger)
    x = torch.randn(3, 11, 24)
    assert difference(merger(x), merge(merger, x, scale)) < TOLERANCE


def test_scores_are_not_scaled_unless_told() -> None:
    merger = PatchMerger(dim=24, num_tokens_out=5)
    assert merger.scale == 1.0
    x = torch.randn(3, 11, 24)
    scores = merger.norm(x) @ merger.queries.T
    torch.testing.assert_close(merger(x), scores.softmax(dim=1).mT @ merger.norm(x))


def test_any_number_of_tokens_is_merged() -> None:
    merger = PatchMerger(24, 5)
    for tokens in (1, 3, 50):
        assert merger(torch.randn(2, tokens, 24)).shape == (2, 5, 24)
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(merger(x.flip(1)), merger(x))


def pair(layer: int | None = None, tokens: int = 8) -> tuple[ViT, VisionTransformer]:
    """Build a model, and timm's with the same weights and the merger's closed form between two blocks."""
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "mlp_ratio": 2}
    mean = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    net = VisionTransformer(**sizes, **mean, num_classes=7)
    randomise(net)
    plain = PlainViT(**SMALL, pool="mean")
    load_pretrained(plain, net.state_dict())
    model = ViT(**SMALL, patch_merge_layer=layer, patch_merge_num_tokens=tokens)
    merger = model.merger
    randomise(merger)
    own = {f"merger.{name}": tensor for name, tensor in merger.state_dict().items()}
    load_pretrained(model, {**plain.state_dict(), **own})
    net.blocks[2 if layer is None else layer].register_forward_pre_hook(
        lambda _, inputs: (merge(merger, inputs[0], 1.0),)
    )
    return model.eval(), net


@torch.inference_mode()
@pytest.mark.parametrize(("layer", "tokens"), [(None, 8), (1, 3), (3, 1)])
def test_equals_timms_with_a_merger(layer: int | None, tokens: int) -> None:
    model, net = pair(layer, tokens)
    x = images(48, 48)
    assert difference(model(x), net(x)) < TOLERANCE
    features = model.forward_features(x)
    assert features.shape == (2, tokens, 48)
    assert difference(features, net.forward_features(x)) < TOLERANCE
    before = list(range(2 if layer is None else layer))
    ours = model.forward_intermediates(x, intermediates_only=True)
    theirs = net.forward_intermediates(x, indices=before, intermediates_only=True)
    for a, b in zip(ours, theirs, strict=True):
        assert difference(a, b) < TOLERANCE


def test_positions_have_no_row_without_a_patch() -> None:
    assert ViT(**SMALL).positions.table.shape == (1, 36, 48)


def test_merges_in_the_middle_to_eight_tokens() -> None:
    for depth in (2, 5, 12):
        model = ViT(**{**SMALL, "depth": depth})
        assert model.merge_layer == len(model.feature_info) == depth // 2
        assert model.merger.queries.shape == (8, 48)


@torch.inference_mode()
@pytest.mark.parametrize("scaled", [True, False])
def test_logits_equal_the_public_packages(scaled: bool) -> None:
    facts, state, tensors = read_golden("public_patch_merger")
    scale = facts["dim"] ** -0.5 if scaled else 1.0
    model = ViT(**facts, scale=scale, qkv_bias=False, patch_norm=True, norm_eps=1e-5).eval()
    report = load_pretrained(model, state, grid="model")
    assert report.dropped == report.kept == ()
    assert difference(model(tensors["input"]), tensors["output"]) < TOLERANCE
    written = to_format(model, report.format)
    unread = state["pos_embedding"].clone()
    unread[:, -1] = 0
    assert written.keys() == state.keys()
    for name, tensor in {**state, "pos_embedding": unread}.items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-6, atol=0)


def test_weights_of_another_function_are_refused() -> None:
    facts, state, _ = read_golden("public_patch_merger")
    with pytest.raises(ValueError, match="does not fit PatchMergerViT"):
        load_pretrained(ViT(**facts), state, grid="model")
    with pytest.raises(ValueError, match="none of the formats known for PatchMergerViT"):
        load_pretrained(ViT(**SMALL), timm.create_model("vit_tiny_patch16_224", depth=1).state_dict())


@pytest.mark.parametrize("name", list_models("*_patch_merger"))
def test_parameter_count_is_timms_and_the_mergers(name: str) -> None:
    config = find_entry(name).config
    with torch.device("meta"):
        model = create_model(name)
        net = VisionTransformer(
            patch_size=config["patch_size"],
            embed_dim=config["dim"],
            depth=config["depth"],
            num_heads=config["heads"],
            mlp_ratio=config["mlp_dim"] / config["dim"],
            class_token=False,
            global_pool="avg",
            fc_norm=False,
        )
    theirs = sum(p.numel() for p in net.parameters()) + (8 + 2) * config["dim"]
    assert sum(p.numel() for p in model.parameters()) == theirs == find_entry(name).parameters


def test_the_merger_learns_with_the_block_behind_it() -> None:
    model = ViT(**SMALL, patch_merge_layer=2)
    groups = group_parameters(model, model.group_matcher())
    (group,) = (names for names in groups.values() if "merger.queries" in names)
    assert {name.rsplit(".", 2)[0] for name in group} >= {"merger", "blocks.2.attention"}
    assert all(name.startswith(("merger.", "blocks.2.")) for name in group)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_merge_layer": 0}, r"\[1, depth - 1\] with depth=4, got 0"),
        ({"patch_merge_layer": 4}, r"\[1, depth - 1\] with depth=4, got 4"),
        ({"depth": 1}, r"\[1, depth - 1\] with depth=1, got 0"),
        ({"patch_merge_num_tokens": 0}, r"patch_merge_num_tokens must be .*, got 0"),
    ],
)
def test_wrong_mergers_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ViT(**{**SMALL, **arguments})
