"""LeViT computes what timm's and transformers' LeViT and the authors' program compute."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.levit import Levit, LevitDistilled
from torch import nn
from transformers import LevitConfig, LevitForImageClassification, LevitForImageClassificationWithTeacher

from tests.papers.family import Family, Named
from tests.papers.reference import (
    TOLERANCE,
    difference,
    images,
    randomise,
)
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.layers.blocks import DropPath
from vit_pytorch.layers.conv import ConvNorm, TokenNorm
from vit_pytorch.levit import DistilledNormHead, LeViT, NormHead
from vit_pytorch.pretrained import to_format

OURS = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 2, 1),
    "heads": (2, 3, 2),
    "mlp_mult": 2,
    "dim_key": 8,
}
THEIRS = {
    "img_size": 64,
    "num_classes": 7,
    "embed_dim": (16, 24, 32),
    "depth": (1, 2, 1),
    "num_heads": (2, 3, 2),
    "key_dim": 8,
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one head": ({}, {}),
    "distilled": ({"distilled": True}, {"distilled": True}),
    "not square": ({"image_size": (96, 32)}, {"img_size": (96, 32)}),
    "odd maps": ({"image_size": (112, 80)}, {"img_size": (112, 80)}),
    "another activation": ({"act": "silu"}, {"act_layer": "silu"}),
    "values as wide as keys": ({"dim_value": 8}, {"attn_ratio": 1.0}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "three convolutions": ({"stem_depth": 3}, {"stem_type": "s8"}),
}


def make_timm(distilled: bool = False, **arguments: Any) -> nn.Module:
    return (LevitDistilled if distilled else Levit)(**arguments)


FAMILY = Family(
    LeViT,
    make_timm,
    OURS,
    THEIRS,
    OPTIONS,
    module="levit",
    named=[Named("levit_128s")],
    maps=("distilled", "odd maps"),
    trained=("one head", "distilled"),
)


def build(**changes: Any) -> LeViT:
    model = LeViT(**{**OURS, **changes})
    randomise(model)
    return model


@torch.inference_mode()
def test_checkpoint_of_convolutions_is_read_and_goes_back() -> None:
    reference = randomise(make_timm(**THEIRS, distilled=True, use_conv=True))
    model = LeViT(**OURS, distilled=True).eval()
    report = load_pretrained(model, reference.state_dict(), strict=True)
    assert report.format == "timm, convolutions"
    x = images(64, 64)
    assert difference(model(x), reference(x)) < TOLERANCE
    written, want = to_format(model, report.format), reference.state_dict()
    assert written.keys() == want.keys()
    assert all(written[name].equal(tensor) for name, tensor in want.items())


@torch.inference_mode()
@pytest.mark.parametrize("distilled", [False, True])
def test_logits_equal_those_of_transformers(distilled: bool) -> None:
    config = LevitConfig(
        image_size=64,
        num_labels=7,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 2],
        depths=[1, 2, 1],
        key_dim=[8, 8, 8],
    )
    build_reference = LevitForImageClassificationWithTeacher if distilled else LevitForImageClassification
    reference = randomise(build_reference(config))
    model = LeViT(**OURS, distilled=distilled).eval()
    report = load_pretrained(model, reference.state_dict(), strict=True)
    assert report.format == "transformers"
    x = images(64, 64)
    assert difference(model(x), reference(x).logits) < TOLERANCE
    written = to_format(model, "transformers")
    want = reference.state_dict()
    assert written.keys() == want.keys()
    assert all(written[name].equal(tensor) for name, tensor in want.items())


def authors_names(model: LeViT) -> dict[str, tuple[int, ...]]:
    """Give the names and shapes of the authors' release, whose layers are one sequence, layer by layer."""
    names: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        names.update(
            {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        )
        names[f"{name}.num_batches_tracked"] = ()

    def layer(name: str, before: int, after: int, kernel: tuple[int, ...] = ()) -> None:
        names[f"{name}.c.weight"] = (after, before, *kernel)
        norm(f"{name}.bn", after)

    for i, (before, after) in enumerate(((3, 2), (2, 4), (4, 8), (8, 16))):
        layer(f"patch_embed.{2 * i}", before, after, (3, 3))
    # Attention and feed-forward of each block, then the attention between stages and its feed-forward.
    for at, width, heads, cells in ((0, 16, 2, 16), (4, 24, 3, 4), (6, 24, 3, 4), (10, 32, 2, 1)):
        layer(f"blocks.{at}.m.qkv", width, heads * 32)
        layer(f"blocks.{at}.m.proj.1", heads * 16, width)
        names[f"blocks.{at}.m.attention_biases"] = (heads, cells)
        names[f"blocks.{at}.m.attention_bias_idxs"] = (cells, cells)
        layer(f"blocks.{at + 1}.m.0", width, 2 * width)
        layer(f"blocks.{at + 1}.m.2", 2 * width, width)
    for at, width, after, heads, cells in ((2, 16, 24, 2, 16), (8, 24, 32, 3, 4)):
        layer(f"blocks.{at}.kv", width, heads * 40)
        layer(f"blocks.{at}.q.1", width, heads * 8)
        layer(f"blocks.{at}.proj.1", heads * 32, after)
        names[f"blocks.{at}.attention_biases"] = (heads, cells)
        names[f"blocks.{at}.attention_bias_idxs"] = (cells // 4, cells)
        layer(f"blocks.{at + 1}.m.0", after, 2 * after)
        layer(f"blocks.{at + 1}.m.2", 2 * after, after)
    for head in ("head", "head_dist"):
        norm(f"{head}.bn", 32)
        names |= {f"{head}.l.weight": (7, 32), f"{head}.l.bias": (7,)}
    return names


@torch.inference_mode()
def test_checkpoint_of_the_authors_is_read_and_goes_back() -> None:
    model, again = build(distilled=True), LeViT(**OURS, distilled=True).eval()
    written = to_format(model, "LeViT")
    want = authors_names(model)
    buffers = {name for name in want if name.endswith("attention_bias_idxs")}
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == {
        name: shape for name, shape in want.items() if name not in buffers
    }
    report = load_pretrained(again, {**written, **{name: torch.ones(want[name]).long() for name in buffers}})
    assert (report.format, set(report.dropped), report.kept) == ("LeViT", buffers, ())
    x = images(64, 64)
    assert again(x).equal(model(x))
    # Within a layer the rows are in the same order as in timm's release.
    other = to_format(model, "timm")
    assert written["blocks.4.m.qkv.c.weight"].equal(other["stages.1.blocks.0.attn.qkv.linear.weight"])
    assert written["blocks.8.kv.bn.bias"].equal(other["stages.2.downsample.attn_downsample.kv.bn.bias"])


@pytest.mark.parametrize("name", ["timm", "LeViT", "transformers"])
@pytest.mark.parametrize("change", [{"depth": (2, 2, 1)}, {"depth": (1, 1, 1)}, {"stages": 2}, {"heads": 3}])
def test_checkpoint_of_another_model_is_refused(name: str, change: dict[str, Any]) -> None:
    if "stages" in change:
        change = {**change, "dim": (16, 24), "depth": (1, 2), "heads": (2, 3)}
    state = to_format(build(), name)
    with pytest.raises(ValueError, match=r"does not fit|cannot be"):
        load_pretrained(LeViT(**{**OURS, **change}), state)


@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
def test_classifiers_of_other_classes_stay_new() -> None:
    """Their norms, which do not depend on the classes, are the checkpoint's, as in timm."""
    reference = randomise(make_timm(**THEIRS, distilled=True))
    model = LeViT(**{**OURS, "num_classes": 3, "distilled": True}).eval()
    before = copy.deepcopy(model.head.state_dict())
    report = load_pretrained(model, reference.state_dict())
    logits = {name for name in before if "linear." in name}
    assert set(report.kept) == {f"head.{name}" for name in logits}
    after, state = model.head.state_dict(), reference.state_dict()
    assert all(after[name].equal(before[name]) for name in logits)
    for kind in ("weight", "running_mean"):
        assert after[f"norm.{kind}"].equal(state[f"head.bn.{kind}"])
        assert after[f"distilled.norm.{kind}"].equal(state[f"head_dist.bn.{kind}"])
    x = images(64, 64)
    with torch.inference_mode():
        features = model.forward_features(x).flatten(2).transpose(1, 2)
        assert difference(features, reference.forward_features(x)) < TOLERANCE


# Fusing.


@torch.inference_mode()
@pytest.mark.parametrize("name", ["one head", "distilled", "no head", "odd maps"])
def test_fused_model_computes_the_same(name: str) -> None:
    model, reference = FAMILY.pair(name)
    fused = model.fuse()
    x = images(*model.image_size)
    assert difference(fused(x), model(x)) < TOLERANCE
    assert difference(fused(x), reference(x)) < TOLERANCE
    assert difference(fused(x[..., :48, :]), model(x[..., :48, :])) < TOLERANCE
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in fused.modules())


def test_fusing_leaves_the_model_as_it_was() -> None:
    model = build(distilled=True).train()
    before = copy.deepcopy(model.state_dict())
    fused = model.fuse()
    assert model.training
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    norms = [m for m in model.modules() if isinstance(m, (TokenNorm, nn.BatchNorm2d))]
    heads = 2 * OURS["dim"][-1]
    # A factor and an offset become a bias; those of the classifiers go into a bias that is there.
    saved = sum(norm.num_features for norm in norms) + heads
    assert count(model) - count(fused) == saved
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_fused_parts_are_fused_once() -> None:
    fused = build().fuse()
    again = fused.fuse()
    assert all(tensor.equal(fused.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert isinstance(fused.head, NormHead)
    assert all(part.norm.__class__ is nn.Identity for part in fused.modules() if isinstance(part, ConvNorm))


def test_fused_model_is_for_inference_alone(tmp_path: Path) -> None:
    fused = build().fuse()
    assert fused.eval() is fused
    with pytest.raises(ValueError, match="a fused LeViT is for inference; train the model it is from"):
        fused.train()
    with pytest.raises(ValueError, match="save the model it is from"):
        fused.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reset the classifier of the model it is from"):
        fused.reset_classifier(3)
    with pytest.raises(ValueError, match="does not fit"):
        load_pretrained(fused, build().state_dict())
    with torch.inference_mode():
        x = images(64, 64)
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert other(x).equal(fused(x))


# Inputs and tables.


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 32), (17, 64), (48, 16), (1, 1)])
def test_smaller_input_has_the_biases_of_its_offsets(size: tuple[int, int]) -> None:
    """A model of that size, whose tables are the corner of the larger ones, computes the same."""
    model, small = build(), build(image_size=size)
    state = model.state_dict()
    for name, module in small.named_modules():
        if name.endswith(".bias"):
            larger = model.get_submodule(name).grid
            table = state[f"{name}.table"].unflatten(1, larger)
            state[f"{name}.table"] = table[:, : module.grid[0], : module.grid[1]].flatten(1)
    small.load_state_dict(state)
    x = images(*size)
    assert (model(x) - small(x)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_biases_are_interpolated_for_another_image_size() -> None:
    model, reference = FAMILY.pair("distilled")
    assert isinstance(model, LeViT)
    larger = LeViT(**{**OURS, "image_size": (96, 128), "distilled": True}).eval()
    report = load_pretrained(larger, reference.state_dict())
    assert report.resized["stages.0.blocks.0.attention.bias.table"] == ((4, 4), (6, 8))
    assert report.resized["stages.2.down.attention.bias.table"] == ((2, 2), (3, 4))
    assert len(report.resized) == 6
    assert larger(images(96, 128)).shape == (2, 7)
    with pytest.raises(ValueError, match="strictly"):
        load_pretrained(larger, reference.state_dict(), strict=True)


# What other programs get wrong.


def test_stem_is_four_convolutions_with_norm_and_activation() -> None:
    layers = LeViT(**OURS).stem.layers
    assert [layer.conv.out_channels for layer in layers] == [2, 4, 8, 16]
    assert all(layer.conv.stride == (2, 2) and layer.conv.bias is None for layer in layers)
    assert [[type(part) for part in layer] for layer in layers] == [
        *[[nn.Conv2d, nn.BatchNorm2d, nn.Hardswish]] * 3,
        [nn.Conv2d, nn.BatchNorm2d],
    ]


def test_bias_is_added_to_scaled_scores() -> None:
    attention = build().stages[0].blocks[0].attention
    x = torch.randn(1, 2, 2, 16)
    q, k, v = attention.project(x)
    rows = []
    table = attention.bias.table.unflatten(1, (4, 4))
    for i in range(4):
        for head in range(2):
            bias = torch.stack([table[head, abs(i // 2 - j // 2), abs(i % 2 - j % 2)] for j in range(4)])
            weights = (k[0, head] @ q[0, head, i] / 8**0.5 + bias).softmax(dim=0)
            rows.append(weights @ v[0, head])
    mixed = torch.stack(rows).view(1, 4, 2, 16)
    want = attention.to_out(torch.nn.functional.hardswish(mixed.flatten(2))).view(1, 2, 2, 16)
    torch.testing.assert_close(attention(x), want, rtol=1e-5, atol=1e-5)


def test_attention_between_stages() -> None:
    """Its heads are the width by that of a key, its values four keys wide, its queries every other cell."""
    first = LeViT(**OURS).stages[1].down.attention
    assert (first.to_q.heads, first.to_q.widths, first.to_kv.widths) == (2, (8,), (8, 32))
    assert first(torch.randn(2, 3, 4, 16)).shape == (2, 2, 2, 24)
    named = create_model("levit_128s").stages[2].down.attention
    assert named.to_q.heads == 16
    assert LeViT(**OURS, down_heads=(4, 5), down_dim_value=6).stages[2].down.attention.to_kv.widths == (8, 6)


def test_distilled_logits_are_the_mean_and_can_be_told_apart() -> None:
    model, reference = FAMILY.pair("distilled")
    x = images(64, 64)
    for net in (model, reference):
        net.train()
    assert difference(model(x), reference(x)) < TOLERANCE
    reference.set_distilled_training()
    assert isinstance(model.head, DistilledNormHead)
    apart = model.head.separate(model.forward_head(model.forward_features(x), pre_logits=True))
    for ours, theirs in zip(apart, reference(x), strict=True):
        assert difference(ours, theirs) < TOLERANCE


def test_distilled_model_keeps_two_heads() -> None:
    model = LeViT(**OURS, distilled=True).eval()
    model.reset_classifier(5)
    assert isinstance(model.head, DistilledNormHead)
    assert not model.head.distilled.norm.training
    assert model.head.distilled.linear.weight.shape == (5, 32)


def test_residual_branches_start_as_nothing() -> None:
    model = LeViT(**OURS)
    for stage in model.stages:
        for block in stage.blocks:
            assert not block.attention.to_out.norm.weight.any()
            assert not block.feedforward.to_out.norm.weight.any()
    assert model.stages[1].down.attention.to_out.norm.weight.all()


def test_one_image_of_one_cell_can_be_trained_on() -> None:
    """Batch norm has no statistics of one vector: those that it keeps serve, and stay."""
    model = LeViT(**OURS).train()
    before = copy.deepcopy(model.head.norm.running_var)
    assert model(images(64, 64, batch=1)).isfinite().all()
    assert model.head.norm.running_var.equal(before)
    norm = randomise(TokenNorm(3))
    x = torch.randn(1, 3)
    assert norm.train()(x).equal(norm.eval()(x))


def test_stochastic_depth_is_the_same_in_every_layer() -> None:
    model = LeViT(**OURS, drop_path=0.1)
    drops = [module.p for module in model.modules() if isinstance(module, DropPath)]
    assert drops == [0.1] * (4 + 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": (2, 4)}, r"heads must be one number or one for each of 3 stages, got \(2, 4\)"),
        ({"dim": (12, 24, 32)}, "dim of the first stage must be a multiple of 8, got 12"),
        ({"dim": (16, 20, 32)}, r"must be multiples of dim_key, got \(16, 20\) and 8"),
        ({"down_heads": (2,)}, r"one number between two of 3 stages, got \(2,\)"),
        ({"act": "swish"}, "act must be one of .*; got 'swish'"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeViT(**{**OURS, **wrong})


def test_larger_images_and_other_poolings_are_refused() -> None:
    model = LeViT(**OURS)
    with pytest.raises(ValueError, match=r"at most \(64, 64\), got \(64, 65\)"):
        model(images(64, 65))
    with pytest.raises(ValueError, match="pooling cannot be 'token'"):
        model.reset_classifier(5, "token")
