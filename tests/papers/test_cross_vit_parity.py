"""CrossViT computes what timm's CrossViT computes, and what the paper says."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath as TimmDropPath
from timm.models import group_parameters
from timm.models.crossvit import CrossVit
from torch import nn

from tests.papers.reference import TOLERANCE, difference, images, randomise, shapes_only
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.cross_vit import ClassTurn, CrossViT
from vit_pytorch.layers.blocks import Block, DropPath
from vit_pytorch.pretrained import to_format

OURS = {
    "image_size": 60,
    "num_classes": 7,
    "depth": 3,
    "sm_dim": 32,
    "sm_patch_size": 6,
    "sm_enc_depth": 1,
    "sm_enc_heads": 4,
    "sm_enc_mlp_dim": 96,
    "lg_dim": 48,
    "lg_patch_size": 8,
    "lg_enc_depth": 2,
    "lg_enc_heads": 4,
    "lg_enc_mlp_dim": 96,
    "cross_attn_heads": 4,
    "lg_image_size": 48,
}
THEIRS = {
    "img_size": 60,
    "img_scale": (1.0, 48 / 60),
    "patch_size": (6, 8),
    "num_classes": 7,
    "embed_dim": (32, 48),
    "depth": ((1, 2, 0),) * 3,
    "num_heads": (4, 4),
    "mlp_ratio": (3, 2, 1),
}
DAGGER = (
    {"stem": "conv", "sm_patch_size": 12, "lg_patch_size": 16},
    {"multi_conv": True, "patch_size": (12, 16)},
)
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resized": ({}, {}),
    "enlarged": ({"lg_image_size": 72}, {"img_scale": (1.0, 72 / 60)}),
    "one size": ({"lg_image_size": None, "lg_patch_size": 10}, {"img_scale": (1, 1), "patch_size": (6, 10)}),
    "not square": (
        {"image_size": (60, 120), "lg_image_size": (48, 96)},
        {"img_size": (60, 120)},
    ),
    "dagger": DAGGER,
    "equal widths": (
        {"lg_dim": 32, "lg_enc_mlp_dim": 64},
        {"embed_dim": (32, 32)},
    ),
    "two small blocks": ({"sm_enc_depth": 2}, {"depth": ((2, 2, 0),) * 3}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}


@pytest.fixture(params=OPTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[CrossViT, CrossVit]:
    """Ours and timm's with the same weights."""
    return build(request.param)


def build(option: str) -> tuple[CrossViT, CrossVit]:
    ours, theirs = OPTIONS[option]
    reference = CrossVit(**{**THEIRS, **theirs})
    randomise(reference)
    model = CrossViT(**{**OURS, **ours})
    load_pretrained(model, reference.state_dict(), grid="model")
    return model.eval(), reference


@torch.inference_mode()
def test_logits_equal_timms(pair: tuple[CrossViT, CrossVit]) -> None:
    model, reference = pair
    x = images(*model.image_size)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_features_equal_timms(pair: tuple[CrossViT, CrossVit]) -> None:
    model, reference = pair
    x = images(*model.image_size)
    theirs = reference.forward_features(x)
    tokens = model.multi_scale_encoder(model.embed(x))
    for branch, ours, want in zip(model.branches, tokens, theirs, strict=True):
        assert difference(branch.norm(ours), want) < TOLERANCE
    embedding = reference.forward_head(theirs, pre_logits=True)
    features = model.forward_features(x)
    assert difference(features[:, 0], embedding) < TOLERANCE
    assert difference(model.forward_head(features, pre_logits=True), embedding) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("indices", "fmt"), [(None, "NCHW"), (2, "NLC"), ([0, -1], "NCHW"), ([1, 4], "NLC")])
@pytest.mark.parametrize("stop_early", [False, True])
def test_intermediates_equal_timms(norm: bool, indices: Any, fmt: str, stop_early: bool) -> None:
    model, reference = build("resized")
    x = images(60, 60)
    arguments = {"indices": indices, "norm": norm, "output_fmt": fmt, "stop_early": stop_early}
    last, ours = model.forward_intermediates(x, **arguments)
    expected, theirs = reference.forward_intermediates(x, **arguments)
    # timm's final features of a run that stops early are none.
    if stop_early:
        expected = reference.forward_features(x)
    assert difference(last[:, 0], torch.cat([tokens[:, 0] for tokens in expected], dim=1)) < TOLERANCE
    short = model.forward_intermediates(x, **arguments, intermediates_only=True)
    assert all(a.equal(b) for a, b in zip(short, ours, strict=True))
    assert len(ours) == len(theirs)
    assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["crossvit_9_240", "crossvit_9_dagger_240", "crossvit_15_dagger_408"])
def test_named_model_equals_timms(name: str) -> None:
    reference = randomise(timm.create_model(name, depth=((1, 1, 0),)))
    model = create_model(name, depth=1, lg_enc_depth=1).eval()
    load_pretrained(model, reference.state_dict(), grid="model")
    x = images(*model.image_size, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize("name", timm.list_models("crossvit_*"))
def test_named_model_is_timms(name: str) -> None:
    with shapes_only():
        model, reference = create_model(name), timm.create_model(name)
    written = to_format(model, "timm")
    state = reference.state_dict()
    assert {key: tensor.shape for key, tensor in written.items()} == {k: v.shape for k, v in state.items()}
    heads = [module.heads for module in model.modules() if hasattr(module, "heads")]
    assert heads == [module.num_heads for module in reference.modules() if hasattr(module, "num_heads")]
    assert tuple(branch.grid.size for branch in model.branches) == tuple(reference.img_size_scaled)
    keys = ("num_chs", "reduction")
    ours, theirs = ([[info[key] for key in keys] for info in m.feature_info] for m in (model, reference))
    assert ours == theirs


def test_all_of_timms_models_are_named() -> None:
    assert set(list_models("crossvit_*")) == set(timm.list_models("crossvit_*"))


def test_weights_go_back_to_timm(pair: tuple[CrossViT, CrossVit]) -> None:
    model, reference = pair
    written = to_format(model, "timm")
    state = reference.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


@torch.inference_mode()
@pytest.mark.parametrize("option", ["resized", "dagger"])
def test_authors_files_load_and_go_back(option: str) -> None:
    """They have lists of tokens and of positions: a full stop where timm has an underscore."""
    model, reference = build(option)
    again = CrossViT(**{**OURS, **OPTIONS[option][0]}).eval()
    names = {f"{kind}_{i}": f"{kind}.{i}" for kind in ("pos_embed", "cls_token") for i in (0, 1)}
    official = {names.get(name, name): tensor for name, tensor in reference.state_dict().items()}
    report = load_pretrained(again, official)
    assert (report.format, report.kept, report.dropped) == ("IBM CrossViT", (), ())
    x = images(60, 60)
    assert again(x).equal(model(x))
    written = to_format(again, "IBM CrossViT")
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], official[name]) for name in official)


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
def test_other_classes_keep_the_models_head() -> None:
    _, reference = build("resized")
    model = CrossViT(**{**OURS, "num_classes": 5}).eval()
    head = model.head.small.weight.clone()
    report = load_pretrained(model, reference.state_dict())
    names = {f"head.{branch}.{kind}" for branch in ("small", "large") for kind in ("weight", "bias")}
    assert set(report.kept) == set(report.dropped) == names
    assert model.head.small.weight.equal(head)
    want = reference.forward_head(reference.forward_features(images(60, 60)), pre_logits=True)
    assert difference(model.forward_features(images(60, 60))[:, 0], want) < TOLERANCE


def test_groups_by_depth_are_timms(pair: tuple[CrossViT, CrossVit]) -> None:
    def layers(net: nn.Module) -> list[tuple[int, int]]:
        groups = group_parameters(net, net.group_matcher())
        sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
        return sorted((i, sum(sizes[name] for name in names)) for i, names in groups.items())

    model, reference = pair
    assert layers(model) == layers(reference)


@pytest.mark.parametrize("option", ["resized", "two small blocks"])
def test_paths_drop_as_timms(option: str) -> None:
    ours, theirs = OPTIONS[option]
    model = CrossViT(**{**OURS, **ours}, drop_path=0.3)
    reference = CrossVit(**{**THEIRS, **theirs}, drop_path_rate=0.3)
    want = [module.drop_prob for module in reference.modules() if isinstance(module, TimmDropPath)]
    # One module drops both branches of a block, where timm has one for each, and none where it drops nothing.
    got = []
    for module in model.modules():
        if isinstance(module, (Block, ClassTurn)) and isinstance(module.drop_path, DropPath):
            got += [module.drop_path.p] * (2 if isinstance(module, Block) else 1)
    assert got == pytest.approx(want)
    assert len(got) > 10


def test_large_branch_sees_the_resized_image() -> None:
    model = create_model("crossvit_9_240", depth=1)
    seen = []
    model.branches[1].patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = images(240, 240, batch=1)
    small, large = model.embed(x)
    assert seen[0].equal(F.interpolate(x, (224, 224), mode="bicubic", align_corners=False))
    assert (small.shape[1], large.shape[1]) == (1 + 20 * 20, 1 + 14 * 14)


def test_smaller_images_are_resized_in_proportion() -> None:
    model = create_model("crossvit_9_240", depth=1)
    small, large = model.embed(images(120, 240, batch=1))
    assert (small.shape[1], large.shape[1]) == (1 + 10 * 20, 1 + 7 * 14)
    with pytest.raises(ValueError, match=r"multiple of patch size \(16, 16\), got \(212, 224\)"):
        model(images(228, 240, batch=1))


@torch.no_grad()
def test_class_token_attends_turn_by_turn_in_the_others_width() -> None:
    """Step by step: norm, GELU, linear; residual attention over the normed concatenation; and back."""
    model = randomise(CrossViT(**{**OURS, "cross_attn_depth": 3}))
    fusion = model.multi_scale_encoder[0].fusions[0]
    small, large = torch.randn(2, 5, 32), torch.randn(2, 6, 48)
    token = fusion.project[2](F.gelu(fusion.project[0](small[:, 0])))
    for turn in fusion.turns:
        attention = turn.attention
        read = turn.norm(torch.stack([token, *large[:, 1:].unbind(1)], dim=1))
        q = attention.to_q(read[:, 0])
        k, v = attention.to_kv(read).chunk(2, dim=-1)
        heads = []
        for part in range(4):
            where = slice(12 * part, 12 * part + 12)
            scores = torch.einsum("be,bne->bn", q[:, where], k[..., where]) / 12**0.5
            heads.append(torch.einsum("bn,bne->be", scores.softmax(dim=1), v[..., where]))
        token = token + attention.to_out(torch.cat(heads, dim=1))
    want = fusion.revert[2](F.gelu(fusion.revert[0](token)))
    after = fusion(small, large)
    assert difference(after[:, 0], want) < TOLERANCE
    assert after[:, 1:].equal(small[:, 1:])


@torch.no_grad()
def test_logits_are_the_mean_of_the_branches() -> None:
    model, reference = build("resized")
    small, large = reference.head
    features = model.forward_features(images(60, 60))[:, 0]
    want = (small(features[:, :32]) + large(features[:, 32:])) / 2
    assert difference(model.head(features), want) < TOLERANCE


def test_one_turn_by_default_and_no_norm_after_a_block() -> None:
    model = CrossViT(**OURS)
    block = model.multi_scale_encoder[0]
    assert [len(fusion.turns) for fusion in block.fusions] == [1, 1]
    norms = sum(isinstance(module, nn.LayerNorm) for module in block.modules())
    assert norms == 2 * (1 + 2) + 2 * 3


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="stem must be one of linear, conv; got 'two'"):
        CrossViT(**OURS, stem="two")
    with pytest.raises(ValueError, match=r"patches of 12 or 16, got \(6, 6\)"):
        CrossViT(**OURS, stem="conv")
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got dim=32 and heads=5"):
        CrossViT(**{**OURS, "sm_enc_heads": 5})
    with pytest.raises(ValueError, match="pooling cannot be 'avg'"):
        CrossViT(**OURS).reset_classifier(3, global_pool="avg")
