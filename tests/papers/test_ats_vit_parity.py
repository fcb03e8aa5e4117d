"""Adaptive token sampling computes what the authors' code and a loop over samples and tokens compute."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.export import Dim, export

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ats_vit, create_model, load_pretrained
from vit_pytorch.ats_vit import ViT, sample_places, score_tokens
from vit_pytorch.pretrained import to_format

SMALL: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 6,
    "num_classes": 7,
    "dim": 48,
    "depth": 4,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 96,
    "max_tokens_per_depth": (64, 40, 20, 6),
}


def small(**arguments: Any) -> ViT:
    model = ViT(**{**SMALL, **arguments})
    randomise(model)
    return model


def authors(name: str, **arguments: Any) -> tuple[ViT, dict[str, Tensor]]:
    """Build the model of a golden file, and give the file's tensors."""
    facts, state, tensors = read_golden(name)
    model = ViT(
        image_size=facts["img_size"],
        patch_size=facts["patch_size"],
        num_classes=facts["num_classes"],
        dim=facts["embed_dim"],
        depth=facts["depth"],
        max_tokens_per_depth=[tokens - 1 for tokens in facts["num_tokens"]],
        heads=facts["num_heads"],
        mlp_dim=int(facts["mlp_ratio"] * facts["embed_dim"]),
        dim_head=facts["embed_dim"] // facts["num_heads"],
        ats_layers=facts["ats_blocks"],
        **arguments,
    )
    report = load_pretrained(model, state)
    assert report.format == "timm"
    assert all(name.endswith("out_zero_mask") for name in report.dropped)
    return model.eval(), tensors


def sampled(model: ViT, x: Tensor) -> dict[int, Tensor]:
    """Give what the tokens are behind every block: 0 the class token, then patches, -1 nothing."""
    found: dict[int, Tensor] = {}
    hooks = []
    for index, (block, points) in enumerate(zip(model.blocks, model.plan(64), strict=True)):
        if points is not None:

            def keep(_: object, __: object, output: tuple[Tensor, Tensor], index: int = index) -> None:
                found[index] = output[1]

            hooks.append(block.register_forward_hook(keep))
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def pick(scores: list[float], points: int, *, intact: bool) -> list[int]:
    """Sample places by inverse transform, one step at a time."""
    order = sorted(range(len(scores)), key=lambda place: scores[place])
    heights, height = [], 0.0
    for place in order:
        height += scores[place]
        heights.append(height)
    low = heights[1] if intact else heights[0]
    kept = []
    for step in range(points):
        at = heights[-1] - (heights[-1] - low) * (points - 1 - step) / max(points - 1, 1)
        near = min(range(len(order)), key=lambda rank: abs(heights[rank] - at))
        if order[near] not in kept:
            kept.append(order[near])
    return kept


def follow(model: ViT, image: Tensor, points: list[int | None]) -> tuple[Tensor, list[int]]:
    """Compute one image's logits on the tokens that are there, without slots or masks."""
    x = model.embed(image[None])[0]
    ids = list(range(len(x)))
    everything = True
    for block, steps in zip(model.blocks, points, strict=True):
        attention = block.attention
        heads, width = attention.heads, attention.dim_head
        rows = attention.to_qkv(block.norm1(x)).view(len(x), 3, heads, width)
        weights = [
            torch.softmax(rows[:, 0, head] @ rows[:, 1, head].T / width**0.5, dim=1) for head in range(heads)
        ]
        kept = list(range(len(x)))
        if steps is not None:
            seen = sum(weight[0] for weight in weights)
            scores = [float(seen[j] * rows[j, 2].norm()) for j in range(1, len(x))]
            kept = [0, *(place + 1 for place in pick(scores, steps, intact=everything))]
            everything = False
        mixed = torch.cat([weights[head][kept] @ rows[:, 2, head] for head in range(heads)], dim=1)
        x = x[kept] + attention.to_out(mixed)
        x = x + block.feedforward(block.norm2(x))
        ids = [ids[place] for place in kept]
    return model.head(model.norm(x[0])), [token - 1 for token in ids[1:]]


@torch.inference_mode()
@pytest.mark.parametrize("drop_tokens", [False, True])
def test_logits_equal_the_authors(drop_tokens: bool) -> None:
    model, tensors = authors("ats_vit_padded", drop_tokens=drop_tokens)
    logits, ids = model(tensors["input"], return_sampled_token_ids=True)
    assert difference(logits, tensors["output"]) < TOLERANCE
    found = sampled(model, tensors["input"])
    for layer in (0, 2, 3):
        theirs = tensors[f"sampled_ids.block{layer}"]
        kept = found[layer].shape[1]
        assert (kept < theirs.shape[1]) == drop_tokens
        assert found[layer].equal(theirs[:, :kept])
        assert (theirs[:, kept:] == -1).all()
    assert ids.equal(torch.where(found[3] < 0, -1, found[3] - 1)[:, 1:])


@torch.inference_mode()
def test_cut_slots_change_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' cut makes the fullest sample lose its lowest score again; done so, theirs result."""
    model, tensors = authors("ats_vit", drop_tokens=True)
    x, theirs = tensors["input"], tensors["output"]
    first, full = sampled(model, x)[1]
    assert torch.stack([first, full]).equal(tensors["sampled_ids.block1"])
    assert -1 in first
    assert -1 not in full
    assert difference(model(x)[:1], theirs[:1]) < TOLERANCE
    assert (model(x)[1] - theirs[1]).abs().max() > 0.1
    whole, _ = authors("ats_vit")
    assert difference(model(x), whole(x)) < TOLERANCE
    assert difference(model(x), torch.cat([model(x[:1]), model(x[1:])])) < TOLERANCE

    def lose(scores: Tensor, points: int, *, intact: bool) -> Tensor:
        rows = [sample_places(row, points, intact=bool((row > 0).all())) for row in scores.split(1) if points]
        return torch.cat(rows)

    monkeypatch.setattr(ats_vit, "sample_places", lose)
    assert difference(model(x), theirs) < TOLERANCE
    found = sampled(model, x)
    assert all(found[layer].equal(tensors[f"sampled_ids.block{layer}"]) for layer in (1, 2, 3))


@torch.inference_mode()
@pytest.mark.parametrize("drop_tokens", [False, True])
@pytest.mark.parametrize(
    ("arguments", "points"),
    [
        ({}, [None, 40, 20, 6]),
        ({"ats_layers": (0, 2, 3)}, [64, None, 20, 6]),
        ({"max_tokens_per_depth": (64,) * 4, "ats_layers": (1, 2, 3)}, [None, 64, 64, 64]),
        ({"max_tokens_per_depth": (99, 10, 30, 1)}, [None, 10, None, 1]),
        ({"max_tokens_per_depth": (64,) * 4}, [None] * 4),
    ],
)
def test_equals_a_loop_over_the_tokens_that_are_there(
    arguments: dict[str, Any], points: list[int | None], drop_tokens: bool
) -> None:
    model = small(**arguments, drop_tokens=drop_tokens)
    x = images(48, 48, batch=3)
    logits, ids = model(x, return_sampled_token_ids=True)
    for image, ours, kept in zip(x, logits, ids, strict=True):
        expected, places = follow(model, image, points)
        assert difference(ours, expected) < TOLERANCE
        assert kept.tolist() == [*places, *[-1] * (len(kept) - len(places))]


@torch.inference_mode()
def test_smaller_images_have_as_many_steps_as_patches() -> None:
    model = small(max_tokens_per_depth=(64,) * 4, ats_layers=(1, 2, 3))
    x = images(24, 36, batch=2)
    logits = model(x)
    for image, ours in zip(x, logits, strict=True):
        assert difference(ours, follow(model, image, [None, 24, 24, 24])[0]) < TOLERANCE
    assert model(images(6, 6)).isfinite().all()


@torch.inference_mode()
def test_tokens_are_left_behind_for_good() -> None:
    model = small()
    x = images(48, 48, batch=3)
    found = sampled(model, x)
    assert [ids.shape[1] for ids in found.values()] == [41, 21, 7]
    for sample in range(3):
        kept = [ids[sample][ids[sample] >= 0].tolist() for ids in found.values()]
        assert all(ids[0] == 0 for ids in kept)
        assert all(len(ids) == len(set(ids)) for ids in kept)
        assert all(set(after) < set(before) for before, after in pairwise(kept))


def test_sampling_is_not_random() -> None:
    model = small()
    x = images(48, 48)
    want = model(x, return_sampled_token_ids=True)
    model.train()
    for _ in range(2):
        logits, ids = model(x, return_sampled_token_ids=True)
        assert logits.equal(want[0])
        assert ids.equal(want[1])


def test_score_takes_the_norm_of_all_heads_values() -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 4).unbind()
    attention = (q[:, :, :1] @ k.mT / 2).softmax(dim=3)[:, :, 0]
    together = attention.sum(dim=1) * torch.linalg.vector_norm(v.transpose(1, 2).flatten(2), dim=2)
    torch.testing.assert_close(score_tokens(q, k, v), together[:, 1:])
    apart = (attention * v.norm(dim=3)).sum(dim=1)
    assert not torch.allclose(together, apart)


def test_empty_slots_score_nothing() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 4).unbind()
    mask = torch.tensor([True, True, False, True, True, False])[None, None, None]
    scores = score_tokens(q, k, v, mask)
    there = [0, 1, 3, 4]
    torch.testing.assert_close(scores[:, [0, 2, 3]], score_tokens(q, k[:, :, there], v[:, :, there]))
    assert scores[:, [1, 4]].eq(0).all()


@pytest.mark.parametrize("points", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("intact", [False, True])
def test_places_equal_a_loop_over_steps(points: int, intact: bool) -> None:
    scores = torch.rand(20, 12) ** 6
    places = sample_places(scores, points, intact=intact)
    assert places.shape == (20, min(points, 12))
    for row, ours in zip(scores, places, strict=True):
        kept = pick(row.tolist(), points, intact=intact)
        assert ours.tolist() == [*kept, *[-1] * (len(ours) - len(kept))]
        assert row.argmax() == kept[-1]
    assert (intact and points > 12) <= (places == -1).any()


def test_even_scores_keep_all_tokens_but_the_lowest() -> None:
    scores = torch.full((1, 16), 0.25) + torch.arange(16) * 1e-4
    assert sample_places(scores, 16, intact=True).tolist() == [[*range(1, 16), -1]]
    assert sample_places(scores, 16, intact=False).tolist() == [[*range(16)]]


def test_scores_of_nothing_are_harmless() -> None:
    places = sample_places(torch.zeros(2, 5), 4, intact=True)
    assert (places[:, 0] >= 0).all()
    assert (places[:, 1:] == -1).all()


def test_layers_without_a_lower_maximum_keep_all() -> None:
    model = small()
    assert model.plan(64) == [None, 40, 20, 6]
    assert model.plan(30) == [None, None, 20, 6]
    assert [info["module"] for info in model.feature_info] == ["blocks.0"]
    named = create_model("deit_small_patch16_224_ats")
    assert named.plan(196) == [None] * 3 + [196] * 9
    assert len(named.feature_info) == 3


@torch.inference_mode()
def test_all_patches_are_named_where_none_is_left_behind() -> None:
    model = small(max_tokens_per_depth=(64,) * 4)
    logits, ids = model(images(48, 48), return_sampled_token_ids=True)
    assert ids.equal(torch.arange(64).expand(2, -1))
    assert logits.equal(model(images(48, 48)))
    assert len(model.feature_info) == 4


@pytest.mark.parametrize("drop_tokens", [False, True])
def test_dropping_keeps_samples_apart_and_graphs_whole(drop_tokens: bool) -> None:
    model = small(max_tokens_per_depth=(64,) * 4, ats_layers=(1, 2, 3), drop_tokens=drop_tokens)
    x = images(48, 48, batch=4)
    together = model(x)
    assert difference(together, torch.cat([model(image) for image in x.split(1)])) < TOLERANCE
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert difference(compiled(x), together) < TOLERANCE
    torch.compiler.reset()
    program = export(model, (x[:2],), dynamic_shapes=({0: Dim("batch", max=4096)},), strict=True)
    assert difference(program.module()(x), together) < TOLERANCE
    together.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.inference_mode()
def test_dropping_cuts_the_slots() -> None:
    x = images(48, 48, batch=4)
    arguments = {"max_tokens_per_depth": (64,) * 4, "ats_layers": (1, 2, 3)}
    kept, whole = (sampled(small(**arguments, drop_tokens=drop), x) for drop in (True, False))
    for layer in (1, 2, 3):
        most = (whole[layer] >= 0).sum(dim=1).max()
        assert most < 65
        assert kept[layer].equal(whole[layer][:, :most])


@torch.inference_mode()
def test_without_sampling_equals_timms() -> None:
    reference = VisionTransformer(
        img_size=48, patch_size=6, num_classes=7, embed_dim=48, depth=4, num_heads=3, mlp_ratio=2
    )
    randomise(reference)
    model = ViT(**SMALL, ats_layers=()).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE
    assert difference(model.forward_features(x), reference.forward_features(x)) < TOLERANCE


@torch.inference_mode()
def test_named_model_takes_deits_weights() -> None:
    reference = randomise(timm.create_model("deit_small_patch16_224"))
    model = create_model("deit_small_patch16_224_ats").eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224, batch=1)
    ours = model.forward_intermediates(x, intermediates_only=True)
    theirs = reference.forward_intermediates(x, indices=[0, 1, 2], intermediates_only=True)
    for a, b in zip(ours, theirs, strict=True):
        assert difference(a, b) < TOLERANCE
    assert difference(model(x)[0], follow(model, x[0], model.plan(196))[0]) < TOLERANCE
    written = to_format(model, "timm")
    state = reference.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)
    assert sum(p.numel() for p in reference.parameters()) == 22_050_664
    assert model.default_cfg["mean"] == reference.default_cfg["mean"]
    assert model.default_cfg["std"] == reference.default_cfg["std"]
    assert model.default_cfg["crop_pct"] == reference.default_cfg["crop_pct"]


def test_weights_of_the_public_package_are_refused() -> None:
    state = {
        "transformer.layers.0.0.to_out.0.weight": torch.zeros(48, 48),
        "cls_token": torch.zeros(1, 1, 48),
    }
    with pytest.raises(ValueError, match="none of the formats known for ATSViT"):
        load_pretrained(small(), state)


def test_empty_slots_are_not_pooled() -> None:
    with pytest.raises(ValueError, match="ATSViT pools by 'cls' only"):
        small().reset_classifier(7, "avg")
    small().reset_classifier(5, "token")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_tokens_per_depth": (64, 32)}, r"each of 4 blocks, got \(64, 32\)"),
        (
            {"max_tokens_per_depth": (64, 32, 16, 0)},
            r"max_tokens_per_depth must be .*, got \(64, 32, 16, 0\)",
        ),
        ({"ats_layers": (3, 4)}, r"\[0, 3\], got \(3, 4\)"),
        ({"ats_layers": (-1,)}, r"ats_layers must be .*, got \(-1,\)"),
    ],
)
def test_wrong_layers_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**arguments)
