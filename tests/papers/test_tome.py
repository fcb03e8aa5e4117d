"""Merging tokens computes what plain loops over tokens compute, and loses no patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim, export
from torch.fx import symbolic_trace

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import SimpleViT, ViT, create_model
from vit_pytorch.base import VisionModel
from vit_pytorch.distill import DistillableViT
from vit_pytorch.layers.positions import Learned
from vit_pytorch.tome import ToMeViT
from vit_pytorch.training.optim import layer_scales

SIZES: dict[str, Any] = {
    "image_size": 40,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 3,
    "heads": 2,
    "dim_head": 12,
    "mlp_dim": 48,
}
BASES = {
    "class token": lambda: ViT(**SIZES),
    "mean": lambda: ViT(**SIZES, pool="mean"),
    "mean, class token": lambda: ViT(**SIZES, pool="mean", class_token=True),
    "attention pool": lambda: ViT(**SIZES, pool="map"),
    "registers": lambda: ViT(**SIZES, num_registers=2, layer_scale=0.5, qk_norm=True),
    "distilled": lambda: DistillableViT(**SIZES),
    "simple": lambda: SimpleViT(**SIZES),
}
MERGED = (4, 0, 7)


def build(base: str, **options: Any) -> tuple[ToMeViT, Any]:
    """The model and its base."""
    vit = BASES[base]()
    randomise(vit)
    return ToMeViT.around(vit, **{"merged": MERGED, **options}).eval(), vit


def attend_in_loops(
    attention: Any, x: Tensor, sizes: list[int], *, proportional: bool
) -> tuple[Tensor, Tensor]:
    """Attention of one image, a query at a time; a token counts as often as it has patches. And its keys."""
    q, k, v = (part[0] for part in attention.project(x[None]))
    out = torch.zeros_like(q)
    for head in range(len(q)):
        for query in range(len(x)):
            scores = [float(q[head, query] @ k[head, j]) * q.shape[-1] ** -0.5 for j in range(len(x))]
            weights = torch.tensor(scores).sub(max(scores)).exp()
            if proportional:
                weights = weights * torch.tensor(sizes, dtype=torch.float)
            out[head, query] = weights / weights.sum() @ v[head]
    return attention.to_out(out.transpose(0, 1).flatten(1)), k.mean(dim=0)


def merge_in_loops(
    tokens: list[Tensor],
    keys: list[Tensor],
    sizes: list[int],
    members: list[list[int]],
    count: int,
    prefix: int,
) -> tuple[list[Tensor], list[int], list[list[int]]]:
    """Merge the pairs of largest cosine, one at a time; tokens at even places look at those between."""
    places = range(prefix, len(tokens))
    first = [place for place in places if place % 2 == 0]
    second = [place for place in places if place % 2]
    likeness = {(a, b): float(F.cosine_similarity(keys[a], keys[b], dim=0)) for a in first for b in second}
    best = {a: max(second, key=lambda b, a=a: likeness[a, b]) for a in first}
    gone = sorted(first, key=lambda a: -likeness[a, best[a]])[:count]
    sums = [token * size for token, size in zip(tokens, sizes, strict=True)]
    sizes, members = list(sizes), [list(some) for some in members]
    for a in gone:
        sums[best[a]] = sums[best[a]] + sums[a]
        sizes[best[a]] += sizes[a]
        members[best[a]] += members[a]
    order = [*range(prefix), *(place for place in first if place not in gone), *second]
    return [sums[i] / sizes[i] for i in order], [sizes[i] for i in order], [members[i] for i in order]


def merged_in_loops(model: ToMeViT, image: Tensor) -> Tensor:
    """All tokens after the final norm, of one image; each patch has its group's."""
    vit, prefix = model.vit, model.num_prefix_tokens
    tokens = list(vit.embed(image[None])[0])
    sizes, members = [1] * len(tokens), [[i] for i in range(len(tokens))]
    for block, count in zip(vit.blocks, model.merged, strict=True):
        x = torch.stack(tokens)
        mixed, keys = attend_in_loops(block.attention, block.norm1(x), sizes, proportional=model.proportional)
        x = x + block.scale1(mixed)
        if count:
            tokens, sizes, members = merge_in_loops(list(x), list(keys), sizes, members, count, prefix)
            x = torch.stack(tokens)
        x = x + block.scale2(block.feedforward(block.norm2(x)))
        tokens = list(x)
    out = torch.empty(sum(map(len, members)), len(tokens[0]))
    for token, some in zip(vit.norm(torch.stack(tokens)), members, strict=True):
        out[some] = token
    return out


@torch.no_grad()
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("base", BASES)
def test_computes_what_loops_over_tokens_compute(base: str, proportional: bool) -> None:
    model, vit = build(base, proportional=proportional)
    x = images(40, 40)
    features = model.forward_features(x)
    want = torch.stack([merged_in_loops(model, image) for image in x])
    assert difference(features, want) < TOLERANCE
    assert model(x).equal(vit.forward_head(features))
    assert not torch.allclose(model(x), vit(x), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("base", BASES)
def test_is_its_base_where_nothing_is_merged(base: str) -> None:
    model, vit = build(base, merged=0)
    x = images(40, 40)
    torch.testing.assert_close(model(x), vit(x))
    torch.testing.assert_close(model.forward_features(x), vit.forward_features(x))
    assert model.state_dict().keys() == {f"vit.{name}" for name in vit.state_dict()}


@torch.no_grad()
def test_alike_patches_change_nothing() -> None:
    """Of an image of one colour all patches are one, where places do not tell them apart."""
    vit = ViT(**SIZES, positions="none")
    randomise(vit)
    x = torch.full((1, 3, 40, 40), 0.3)
    tokens, groups = ToMeViT.around(vit, merged=10).eval().merge(x)
    assert tokens.shape[1] == 1 + 25 - 10 - 7 - 4
    assert set(groups[0].tolist()) == set(range(4))
    torch.testing.assert_close(ToMeViT.around(vit, merged=10)(x), vit(x))


def test_number_of_tokens() -> None:
    model, _ = build("class token", merged=8)
    assert model.plan(25) == [8, 8, 4]
    assert ToMeViT.around(model.vit, merged=1000).plan(25) == [12, 6, 3]
    tokens, groups = model.merge(images(40, 40))
    assert tokens.shape == (2, 1 + 25 - 20, 24)
    assert groups.shape == (2, 25)
    assert int(groups.max()) < 5


def test_gradients_reach_every_parameter() -> None:
    model, _ = build("registers")
    model.train()
    model(images(40, 40)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert model.no_weight_decay() <= dict(model.named_parameters()).keys()
    scales = layer_scales(model, 0.5)
    base = layer_scales(model.vit, 0.5)
    assert scales == {f"vit.{name}": rate for name, rate in base.items()}


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, vit = build("registers")
    model.save_pretrained(tmp_path)
    loaded = create_model(tmp_path)
    assert type(loaded) is ToMeViT
    assert loaded(images(40, 40)).equal(model(images(40, 40)))
    assert loaded.default_cfg == model.default_cfg == vit.default_cfg
    model.reset_classifier(3)
    assert model(images(40, 40)).shape == (2, 3)
    model.save_pretrained(tmp_path)
    assert create_model(tmp_path)(images(40, 40)).equal(model(images(40, 40)))


def test_images_of_other_sizes() -> None:
    vit = ViT(**SIZES, positions=Learned(dynamic_img_size=True))
    model = ToMeViT.around(randomise(vit), merged=3)
    assert model.merge(images(56, 24))[0].shape[1] == 1 + 21 - 9


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("base", ["class token", "simple"])
def test_traces_compiles_and_exports(base: str) -> None:
    model, _ = build(base)
    x = images(40, 40, batch=3)
    torch.testing.assert_close(symbolic_trace(model)(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, x)(x[:2]), model(x[:2]))
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))
    program = export(model, (x,), dynamic_shapes=({0: Dim("batch", max=4096)},), strict=True)
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"positions": "rope"}, "without positions"),
        ({"positions": "relative"}, "without positions"),
        ({"value_residual": True}, "another layer's values"),
        ({"hyper_connections": 2}, "plain pre-norm blocks"),
        ({"norm": {"kind": "layer", "post": True}}, "plain pre-norm blocks"),
    ],
)
def test_bases_that_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        ToMeViT.around(ViT(**SIZES, **options))


def test_wrong_use() -> None:
    xcit: VisionModel = create_model("xcit_nano_12_p16_224", depth=1)
    with pytest.raises(ValueError, match="must be one of ViT, SimpleViT, DistillableViT, got XCiT"):
        ToMeViT.around(xcit)
    with pytest.raises(ValueError, match="one for each of 3 blocks, got \\(1, 2\\)"):
        ToMeViT.around(ViT(**SIZES), merged=(1, 2))
    with pytest.raises(ValueError, match="merged must be an integer in"):
        ToMeViT.around(ViT(**SIZES), merged=-1)
    with pytest.raises(ValueError, match="no maps"):
        ToMeViT.around(ViT(**SIZES)).split_output(None, 0, (40, 40), norm=True)
    assert ToMeViT.around(ViT(**SIZES)).feature_info == []
