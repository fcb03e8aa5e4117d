"""The plain ViT computes what timm, torchvision, transformers and the public vit-pytorch compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import vision_transformer as torchvision_vit
from torchvision.models import vit_b_16
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise, shapes_only
from vit_pytorch import SimpleViT, ViT, create_model, list_models, load_pretrained
from vit_pytorch.layers.positions import Learned
from vit_pytorch.layers.tokens import Head
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

SMALL = {"image_size": 48, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 3, "heads": 3}
OURS = {**SMALL, "dim_head": 16, "mlp_dim": 192}
THEIRS = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cls": ({}, {}),
    "cls, fc_norm": ({"head": {"kind": "linear", "norm": True}}, {"fc_norm": True}),
    "mean, fc_norm": (
        {"pool": "mean", "class_token": True, "head": {"kind": "linear", "norm": True}},
        {"global_pool": "avg"},
    ),
    "mean": ({"pool": "mean", "class_token": True}, {"global_pool": "avg", "fc_norm": False}),
    "mean, no class token": (
        {"pool": "mean"},
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
    ),
    "map": ({"pool": "map"}, {"global_pool": "map", "class_token": False}),
    "map, class token": ({"pool": "map", "class_token": True}, {"global_pool": "map"}),
    "qk_norm": ({"qk_norm": True}, {"qk_norm": True}),
    "layer_scale": ({"layer_scale": 1e-5}, {"init_values": 1e-5}),
    "registers": (
        {"num_registers": 4, "positions": {"kind": "learned", "class_token": False}},
        {"reg_tokens": 4, "no_embed_class": True},
    ),
    "registers with places": ({"num_registers": 4}, {"reg_tokens": 4}),
    "registers, mean": (
        {"num_registers": 4, "pool": "mean", "head": {"kind": "linear", "norm": True}},
        {"reg_tokens": 4, "global_pool": "avg", "class_token": False, "no_embed_class": True},
    ),
    "pre_norm": ({"stem": {"kind": "linear", "pre_norm": True}}, {"pre_norm": True}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "gelu_tanh": ({"act": "gelu_tanh"}, {"act_layer": "gelu_tanh"}),
    "quickgelu": ({"act": "quickgelu"}, {"act_layer": "quick_gelu"}),
    "relu": ({"act": "relu"}, {"act_layer": "relu"}),
    "silu": ({"act": "silu"}, {"act_layer": "silu"}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "not square": ({"image_size": (32, 72)}, {"img_size": (32, 72)}),
}


@pytest.fixture(params=OPTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[ViT, VisionTransformer]:
    """Ours and timm's with the same weights."""
    ours, theirs = OPTIONS[request.param]
    reference = VisionTransformer(**{**THEIRS, **theirs})
    randomise(reference)
    model = ViT(**{**OURS, **ours})
    grid = model.grid.shape
    load_pretrained(model, reference.state_dict(), grid=grid if grid[0] != grid[1] else None)
    return model.eval(), reference


@torch.inference_mode()
def test_logits_equal_timms(pair: tuple[ViT, VisionTransformer]) -> None:
    model, reference = pair
    x = images(*model.image_size)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_features_equal_timms(pair: tuple[ViT, VisionTransformer]) -> None:
    model, reference = pair
    x = images(*model.image_size)
    assert difference(model.forward_features(x), reference.forward_features(x)) < TOLERANCE
    ours = model.forward_head(model.forward_features(x), pre_logits=True)
    theirs = reference.forward_head(reference.forward_features(x), pre_logits=True)
    assert difference(ours, theirs) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("indices", "fmt"), [(None, "NCHW"), (2, "NLC"), ([0, -1], "NCHW")])
def test_intermediates_equal_timms(norm: bool, indices: Any, fmt: str) -> None:
    reference = randomise(VisionTransformer(**THEIRS, reg_tokens=2, no_embed_class=True))
    model = ViT(**OURS, num_registers=2, positions=Learned(class_token=False)).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    arguments = {"indices": indices, "return_prefix_tokens": True, "norm": norm, "output_fmt": fmt}
    last, ours = model.forward_intermediates(x, **arguments)
    expected, theirs = reference.forward_intermediates(x, **arguments)
    assert difference(last, expected) < TOLERANCE
    assert len(ours) == len(theirs)
    for (a, prefix), (b, expected_prefix) in zip(ours, theirs, strict=True):
        assert difference(a, b) < TOLERANCE
        assert difference(prefix, expected_prefix) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "depth"),
    [("vit_tiny_patch16_224", 12), ("vit_small_patch32_224", 2), ("vit_base_patch32_224", 1)],
)
def test_named_model_equals_timms(name: str, depth: int) -> None:
    reference = randomise(timm.create_model(name, depth=depth))
    model = create_model(name, depth=depth).eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_huge_head_width_equals_timms() -> None:
    reference = randomise(VisionTransformer(embed_dim=1280, num_heads=16, depth=1, patch_size=32))
    model = create_model("vit_huge_patch32_224", depth=1).eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


SIZES = [
    name
    for name in list_models("*vit_*_patch??_224")
    if find_entry(name).architecture in (ViT, SimpleViT) and not re.search("_pe_|relpos", name)
]


@pytest.mark.parametrize("name", SIZES)
def test_parameter_count_equals_timms(name: str) -> None:
    entry = find_entry(name)
    simple = issubclass(entry.architecture, SimpleViT)
    config = entry.config
    with shapes_only():
        model = create_model(name, num_classes=1000)
        reference = VisionTransformer(
            patch_size=config["patch_size"],
            embed_dim=config["dim"],
            depth=config["depth"],
            num_heads=config["heads"],
            mlp_ratio=config["mlp_dim"] / config["dim"],
            class_token=not simple,
            global_pool="avg" if simple else "token",
            fc_norm=False,
        )
    theirs = sum(p.numel() for p in reference.parameters())
    if simple:
        theirs -= reference.pos_embed.numel()
    assert sum(p.numel() for p in model.parameters()) == theirs == entry.parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_tiny_patch16_224", 5_717_416),
        ("vit_small_patch16_224", 22_050_664),
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("simple_vit_tiny_patch16_224", 5_679_400),
        ("simple_vit_small_patch16_224", 21_974_632),
        ("simple_vit_base_patch16_224", 86_415_592),
    ],
)
def test_parameter_count_is_the_published_one(name: str, parameters: int) -> None:
    assert find_entry(name).parameters == parameters


@torch.inference_mode()
def test_vit_b_16_equals_torchvisions() -> None:
    reference = randomise(vit_b_16())
    model = create_model("vit_base_patch16_224").eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


@torch.inference_mode()
def test_representation_layer_equals_torchvisions() -> None:
    arguments = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 96, "num_classes": 7}
    reference = randomise(
        torchvision_vit.VisionTransformer(48, 8, **arguments, representation_size=20)  # type: ignore[arg-type]
    )
    model = ViT(**{**OURS, "depth": 2, "mlp_dim": 96}, head=Head(hidden_dim=20)).eval()
    published = {name.replace("mlp.0", "mlp.linear_1"): v for name, v in reference.state_dict().items()}
    published = {name.replace("mlp.3", "mlp.linear_2"): v for name, v in published.items()}
    load_pretrained(model, published)
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE


HUGGING_FACE = {
    "image_size": 48,
    "patch_size": 8,
    "num_labels": 7,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}


@torch.inference_mode()
def test_logits_equal_transformers(tmp_path: Path) -> None:
    reference = randomise(ViTForImageClassification(ViTConfig(**HUGGING_FACE, intermediate_size=192)))
    x = images(48, 48)
    expected = reference(x).logits
    reference.save_pretrained(tmp_path)
    eps = reference.config.layer_norm_eps
    for checkpoint in (reference.state_dict(), tmp_path):
        model = ViT(**OURS, norm_eps=eps).eval()
        load_pretrained(model, checkpoint)
        assert difference(model(x), expected) < TOLERANCE
    without_head = ViT(**{**OURS, "num_classes": 0}, norm_eps=eps).eval()
    report = load_pretrained(without_head, reference.vit.state_dict())
    assert report.kept == ()
    tokens = reference.vit(x).last_hidden_state
    assert difference(without_head.forward_features(x), tokens) < TOLERANCE


def test_parameter_count_equals_transformers() -> None:
    with shapes_only():
        reference = ViTForImageClassification(ViTConfig(num_labels=1000))
    theirs = sum(p.numel() for p in reference.parameters())
    assert theirs == find_entry("vit_base_patch16_224").parameters


@torch.inference_mode()
def test_registers_equal_transformers(tmp_path: Path) -> None:
    reference = randomise(
        Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**HUGGING_FACE))
    )
    x = images(48, 48)
    expected = reference.dinov2_with_registers(x).last_hidden_state
    reference.save_pretrained(tmp_path)
    for checkpoint in (reference.state_dict(), tmp_path):
        model = ViT(**{**OURS, "num_classes": 0}, num_registers=4, layer_scale=1e-5).eval()
        report = load_pretrained(model, checkpoint)
        assert set(report.dropped) == {
            "embeddings.mask_token",
            "head.weight",
            "head.bias",
        }
        assert difference(model.forward_features(x), expected) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("name", ["public_vit", "public_vit_mean", "public_simple_vit"])
def test_logits_equal_the_public_packages(name: str) -> None:
    facts, state, tensors = read_golden(name)
    arguments = {**facts, "qkv_bias": False, "norm_eps": 1e-5}
    if "simple" in name:
        model = SimpleViT(**arguments, patch_norm=True, out_bias=False, act="gelu").eval()
    else:
        model = ViT(**arguments, stem="dual_norm").eval()
    load_pretrained(model, state, grid="model")
    assert difference(model(tensors["input"]), tensors["output"]) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("size", [40, 64, (40, 56)])
def test_finer_images_equal_timms(size: Any) -> None:
    reference = randomise(VisionTransformer(**THEIRS))
    height, width = (size, size) if isinstance(size, int) else size
    target = VisionTransformer(**{**THEIRS, "img_size": (height, width)})
    state = dict(reference.state_dict())
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (height // 8, width // 8))
    target.load_state_dict(state)
    model = ViT(**{**OURS, "image_size": size}).eval()
    report = load_pretrained(model, reference.state_dict())
    assert report.resized == {"positions.table": ((6, 6), (height // 8, width // 8))}
    x = images(height, width)
    assert difference(model(x), target.eval()(x)) < TOLERANCE


# Registers lose their places on the way in: these become part of the registers.
REVERSIBLE = [name for name in OPTIONS if name != "registers with places"]


@pytest.mark.parametrize("pair", REVERSIBLE, indirect=True)
def test_weights_go_back_to_timm(pair: tuple[ViT, VisionTransformer]) -> None:
    model, reference = pair
    written = to_format(model, "timm")
    state = reference.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_weights_go_back_to_transformers(tmp_path: Path) -> None:
    reference = randomise(ViTForImageClassification(ViTConfig(**HUGGING_FACE, intermediate_size=192)))
    model = ViT(**OURS)
    load_pretrained(model, reference.state_dict())
    reference.config.save_pretrained(tmp_path)
    save_file(to_format(model, "transformers"), tmp_path / "model.safetensors", {"format": "pt"})
    again = ViTForImageClassification.from_pretrained(tmp_path)
    state = reference.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("pair", REVERSIBLE, indirect=True)
def test_groups_by_depth_are_timms(pair: tuple[ViT, VisionTransformer]) -> None:
    def layers(net: nn.Module) -> list[tuple[int, int]]:
        groups = group_parameters(net, net.group_matcher())
        sizes = dict(net.named_parameters())
        return sorted((i, sizes[name].numel()) for i, names in groups.items() for name in names)

    model, reference = pair
    assert layers(model) == layers(reference)
