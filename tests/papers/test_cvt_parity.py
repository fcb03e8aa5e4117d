"""CvT computes what its authors' program and transformers' CvtForImageClassification compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CvtConfig, CvtForImageClassification

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.cvt import ConvAttention, CvT, Variant, embed_padding
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.blocks import DropPath, QuickGELU
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

OURS = {
    "num_classes": 7,
    "s1_emb_dim": 16,
    "s1_heads": 1,
    "s1_depth": 1,
    "s2_emb_dim": 24,
    "s2_heads": 2,
    "s2_depth": 2,
    "s3_emb_dim": 32,
    "s3_heads": 4,
    "s3_depth": 3,
    "image_size": 64,
    "variant": "transformers",
}
THEIRS = {
    "num_labels": 7,
    "embed_dim": [16, 24, 32],
    "num_heads": [1, 2, 4],
    "depth": [1, 2, 3],
    "drop_path_rate": [0.0, 0.0, 0.0],
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "class token in the last stage": ({}, {}),
    "no class token": (
        {"variant": Variant(class_token=(False, False, False), act="gelu")},
        {"cls_token": [False, False, False]},
    ),
    "no biases": ({"variant": Variant(qkv_bias=False, act="gelu")}, {"qkv_bias": [False, False, False]}),
    "other kernels and strides": (
        {
            "s1_emb_kernel": 8,
            "s2_emb_kernel": 5,
            "s1_proj_kernel": 5,
            "s2_kv_proj_stride": 1,
            "s3_kv_proj_stride": 3,
            "s1_mlp_mult": 2,
        },
        {
            "patch_sizes": [8, 5, 3],
            "patch_padding": [2, 2, 1],
            "kernel_qkv": [5, 3, 3],
            "padding_q": [2, 1, 1],
            "padding_kv": [2, 1, 1],
            "stride_kv": [2, 1, 3],
            "mlp_ratio": [2.0, 4.0, 4.0],
        },
    ),
    "no head": ({"num_classes": 0}, {"num_labels": 0}),
}
SIZES = [(64, 64), (96, 64), (61, 75), (224, 32), (4, 4)]


def build(**changes: Any) -> CvT:
    model = CvT(**{**OURS, **changes})
    randomise(model)
    return model


def make_pair(name: str) -> tuple[CvT, nn.Module]:
    """Ours and transformers' with the same weights."""
    ours, theirs = OPTIONS[name]
    reference = randomise(CvtForImageClassification(CvtConfig(**{**THEIRS, **theirs})))
    model = CvT(**{**OURS, **ours})
    report = load_pretrained(model, reference.state_dict(), strict=True)
    assert report.format == "transformers"
    return model.eval(), reference


@pytest.fixture(params=OPTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[CvT, nn.Module]:
    return make_pair(request.param)


@torch.inference_mode()
def test_logits_equal_the_authors() -> None:
    config, weights, golden = read_golden("cvt_quickgelu")
    spec = config["spec"]
    arguments: dict[str, Any] = {"num_classes": config["num_classes"]}
    for stage in range(3):
        for ours, theirs in (
            ("emb_dim", "DIM_EMBED"),
            ("emb_kernel", "PATCH_SIZE"),
            ("emb_stride", "PATCH_STRIDE"),
            ("proj_kernel", "KERNEL_QKV"),
            ("kv_proj_stride", "STRIDE_KV"),
            ("heads", "NUM_HEADS"),
            ("depth", "DEPTH"),
            ("mlp_mult", "MLP_RATIO"),
        ):
            arguments[f"s{stage + 1}_{ours}"] = int(spec[theirs][stage])
    variant = Variant(class_token=spec["CLS_TOKEN"], norm_eps=config["norm_eps"])
    model = CvT(**arguments, variant=variant, image_size=64).eval()
    report = load_pretrained(model, weights, strict=True)
    assert (report.format, report.dropped) == ("CvT", ())
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    maps = model.forward_intermediates(golden["input"], intermediates_only=True)
    assert difference(maps[-1], golden["features"]) < TOLERANCE
    assert sum(parameter.numel() for parameter in model.parameters()) == 215_290
    assert [conv.proj.layers[0].padding[0] for conv in (stage.down for stage in model.stages)] == [2, 1, 1]
    written = to_format(model, "CvT")
    assert written.keys() == weights.keys()
    assert all(written[name].equal(tensor) for name, tensor in weights.items())


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_those_of_transformers(pair: tuple[CvT, nn.Module], size: tuple[int, int]) -> None:
    model, reference = pair
    x = images(*size)
    # Without the states it takes something else for the class token that it does not have.
    assert difference(model(x), reference(x, output_hidden_states=True).logits) < TOLERANCE
    theirs = reference.cvt(x, output_hidden_states=True)
    ours, prefix = zip(
        *model.forward_intermediates(x, return_prefix_tokens=True, intermediates_only=True), strict=True
    )
    assert all(difference(a, b) < TOLERANCE for a, b in zip(ours, theirs.hidden_states, strict=True))
    if theirs.cls_token_value is not None:
        assert difference(prefix[-1], theirs.cls_token_value) < TOLERANCE


@torch.inference_mode()
def test_checkpoint_goes_back_to_transformers(pair: tuple[CvT, nn.Module]) -> None:
    model, reference = pair
    written = to_format(model, "transformers")
    want = reference.state_dict()
    assert written.keys() == want.keys()
    assert all(written[name].equal(tensor) for name, tensor in want.items())


@torch.inference_mode()
def test_features_are_tokens_behind_the_class_token_or_a_map() -> None:
    x = images(64, 96)
    features = build().forward_features(x)
    assert features.shape == (2, 1 + 4 * 6, 32)
    model = build(variant=Variant(class_token=(True, False, False)))
    assert model.forward_features(x).shape == (2, 32, 4, 6)
    # The class token of another stage is seen by the cells of that stage.
    before = model(x)
    model.stages[0].prefix.class_token.normal_()
    assert (model(x) - before).abs().max() > 1e-4


def test_published_models() -> None:
    """Counts are transformers', and the widest model's; names are the authors' with the resolution."""
    for name, changes in (
        ("cvt_13", {}),
        ("cvt_21_384", {"depth": [1, 4, 16]}),
        ("cvt_w24_384", {"depth": [2, 2, 20], "embed_dim": [192, 768, 1024], "num_heads": [3, 12, 16]}),
    ):
        with torch.device("meta"):
            reference = CvtForImageClassification(CvtConfig(num_labels=1000, **changes))
            model = create_model(name)
        count = sum(parameter.numel() for parameter in reference.parameters())
        assert sum(parameter.numel() for parameter in model.parameters()) == count
        assert find_entry(name).parameters == count


@torch.inference_mode()
def test_named_model_equals_that_of_transformers() -> None:
    reference = randomise(CvtForImageClassification(CvtConfig(num_labels=1000)))
    model = create_model("cvt_13", variant="transformers").eval()
    load_pretrained(model, reference.state_dict(), strict=True)
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x).logits) < TOLERANCE


# What other programs get wrong.


def test_last_stage_has_a_class_token_and_a_norm() -> None:
    model = CvT(num_classes=7)
    assert [len(stage.prefix) for stage in model.stages] == [0, 0, 1]
    assert model.stages[2].prefix.class_token.shape == (1, 1, 384)
    assert isinstance(model.norm, nn.LayerNorm)
    assert isinstance(model.stages[0].blocks[0].feedforward.act, QuickGELU)


@torch.inference_mode()
def test_keys_and_values_have_projections_of_their_own() -> None:
    """Each is a depth-wise convolution, batch norm and a linear layer; the scale is dim ** -0.5."""
    attention = ConvAttention(6, heads=2, kernel_size=3, kv_stride=2)
    randomise(attention)
    x = torch.randn(1, 1 + 20, 6)
    cells = x[:, 1:].transpose(1, 2).unflatten(2, (4, 5))
    parts = []
    linears = (attention.to_q, attention.to_k, attention.to_v)
    for i, (linear, stride) in enumerate(zip(linears, (1, 2, 2), strict=True)):
        conv, norm = attention.convs[i].layers[0]
        assert (conv.groups, conv.bias) == (6, None)
        moved = norm(nn.functional.conv2d(cells, conv.weight, None, stride, 1, 1, 6)).flatten(2).mT
        tokens = linear(torch.cat([x[:, :1], moved], dim=1))
        parts.append(tokens.unflatten(2, (2, 3)).transpose(1, 2))
    assert all(linear.bias is not None for linear in linears)
    q, k, v = parts
    assert (q.shape[2], k.shape[2]) == (21, 1 + 2 * 3)
    mixed = (q @ k.mT * 6**-0.5).softmax(dim=-1) @ v
    want = attention.to_out(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, BlockInputs((4, 5), 1)), want, rtol=1e-5, atol=1e-5)


def test_maps_are_the_strides_part_of_the_image() -> None:
    model = build()
    maps = model.forward_intermediates(images(64, 96), intermediates_only=True)
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 16, 24), (24, 8, 12), (32, 4, 6)]
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16]
    for kernel in range(1, 12):
        for stride in range(1, 6):
            conv = nn.Conv1d(1, 1, kernel, stride, embed_padding(kernel, stride))
            if kernel >= stride:
                assert conv(torch.zeros(1, 1, 10 * stride)).shape[2] == 10 + (stride == 1 and kernel % 2 == 0)


def test_only_the_last_queries_convolution_has_no_gradient() -> None:
    model = build().train()
    logits = model(images(64, 64))
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    conv = "stages.2.blocks.2.attention.convs.0.layers.0"
    assert without == {f"{conv}.conv.weight", f"{conv}.norm.weight", f"{conv}.norm.bias"}


def test_branches_are_dropped_in_the_last_stage() -> None:
    model = CvT(**OURS, drop_path=0.2)
    drops = [[m.p for m in stage.modules() if isinstance(m, DropPath)] for stage in model.stages]
    assert drops == [[], [], [0.1, 0.2]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"s2_heads": 5}, "dim must be a multiple of heads, got dim=24 and heads=5"),
        ({"s1_proj_kernel": 4}, "the kernel of a projection must be odd, got 4"),
        (
            {"variant": {"kind": "authors", "class_token": (True,)}},
            r"class_token must be one for each of 3 stages, got \(True,\)",
        ),
        ({"variant": "timm"}, "variant must be one of authors, transformers; got 'timm'"),
        ({"variant": {"kind": "authors", "act": "swish"}}, "act must be one of .*; got 'swish'"),
        ({"image_size": 2}, r"an image must be at least \(3, 3\), got image size \(2, 2\)"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CvT(**{**OURS, **wrong})


@torch.inference_mode()
@pytest.mark.parametrize("kernels", [(7, 3, 3), (11, 5, 4), (4, 2, 2), (3, 1, 9)])
def test_least_image_leaves_a_cell_in_every_stage(kernels: tuple[int, int, int]) -> None:
    model = build(**{f"s{i + 1}_emb_kernel": kernel for i, kernel in enumerate(kernels)})
    least = model.min_size[0]
    assert model(images(least, least)).isfinite().all()
    with pytest.raises(ValueError, match=rf"at least \({least}, {least}\)"):
        model(images(least - 1, least))


def test_example_of_other_heads() -> None:
    """Where the heads do not have 64 channels, they share the width."""
    model = CvT(num_classes=3, s3_heads=4, s3_depth=1)
    assert model.stages[2].blocks[0].attention.dim_head == 96


def test_pooling_is_by_the_class_token_or_the_mean() -> None:
    for class_token, right, wrong in (((False, False, True), "token", "avg"), ((False,) * 3, "avg", "cls")):
        model = CvT(**{**OURS, "variant": Variant(class_token=class_token)})
        model.reset_classifier(5, right)
        assert model(images(64, 64)).shape == (2, 5)
        with pytest.raises(ValueError, match=f"pooling cannot be '{wrong}'"):
            model.reset_classifier(5, wrong)


def test_class_tokens_do_not_decay() -> None:
    model = CvT(**{**OURS, "variant": Variant(class_token=(True, False, True))})
    assert model.no_weight_decay() == {"stages.0.prefix.class_token", "stages.2.prefix.class_token"}


@torch.inference_mode()
def test_both_formats_hold_all_weights() -> None:
    model, again = build(), CvT(**OURS).eval()
    load_pretrained(again, to_format(model, "transformers"), strict=True)
    x = images(64, 64)
    assert again(x).equal(model(x))
    again.stages[2].prefix.class_token.zero_()
    load_pretrained(again, to_format(model, "CvT"), strict=True)
    assert again(x).equal(model(x))


def test_arguments_of_version_0_1_are_settings_of_the_variant() -> None:
    with pytest.warns(DeprecationWarning, match="variant="):
        model = CvT(**{**OURS, "variant": "authors"}, act="gelu", class_token=(True, False, False))
    assert model.config["variant"]["act"] == "gelu"
    assert [len(stage.prefix) for stage in model.stages] == [1, 0, 0]
    with pytest.warns(DeprecationWarning, match="qkv_bias=False"):
        model = CvT(**OURS, qkv_bias=False)
    assert model.stages[0].blocks[0].attention.to_q.bias is None


def test_every_projection_is_a_layer_that_is_called() -> None:
    model = build()
    x = images(64, 64)
    before = model(x)
    attention = model.stages[1].blocks[0].attention
    for part in (attention.to_q, attention.to_k, attention.to_v):
        handle = part.register_forward_hook(lambda module, inputs, output: output + 1)
        changed = model(x)
        handle.remove()
        # Whatever is added to all keys alike cancels in the softmax.
        assert (changed - before).abs().max() > 1e-4 or part is attention.to_k
