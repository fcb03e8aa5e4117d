"""Formats are recognised by their names, and each translates there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.pretrained.conftest import build
from vit_pytorch import SimpleViT, ViT, create_model, load_pretrained
from vit_pytorch.pretrained import to_format

FORMATS = ("vit_pytorch", "timm", "torchvision", "transformers", "vit_jax", "big_vision")


def assert_same_weights(a: ViT, b: ViT) -> None:
    theirs = b.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.module."])
@pytest.mark.parametrize("name", FORMATS)
def test_there_and_back(model: ViT, name: str, prefix: str) -> None:
    state = {prefix + key: tensor for key, tensor in to_format(model, name).items()}
    again = build()
    if name == "transformers" and prefix == "backbone.":
        state = {key.replace("backbone.classifier", "classifier"): v for key, v in state.items()}
    assert load_pretrained(again, state).format == name
    assert_same_weights(model, again)


def test_there_and_back_of_the_public_vit() -> None:
    options = {"stem": "dual_norm", "qkv_bias": False, "norm_eps": 1e-5}
    model, again = build(**options), build(**options)
    randomise(model)
    report = load_pretrained(again, to_format(model, "vit-pytorch ViT"))
    assert report.format == "vit-pytorch ViT"
    assert_same_weights(model, again)


def test_earlier_shape_of_the_public_vits_tokens() -> None:
    options = {"stem": "dual_norm", "qkv_bias": False}
    model, again = build(**options), build(**options)
    randomise(model)
    state = to_format(model, "vit-pytorch ViT")
    assert state["pos_embedding"].shape == (37, 48)
    state["pos_embedding"] = state["pos_embedding"][None]
    state["cls_token"] = state["cls_token"][None]
    load_pretrained(again, state)
    assert_same_weights(model, again)


def test_format_without_a_place_for_a_tensor_refuses() -> None:
    with pytest.raises(ValueError, match=r"torchvision has no place for prefix\.registers"):
        to_format(build(num_registers=2), "torchvision")


def test_unknown_format_name_is_refused(model: ViT) -> None:
    with pytest.raises(ValueError, match=r"a format is one of vit_pytorch, .*timm, .*; got 'keras'"):
        to_format(model, "keras")


def test_unknown_layout_is_refused_with_the_formats_tried(model: ViT) -> None:
    state = {"stem.conv.weight": torch.ones(3, 3), "stem.conv.bias": torch.ones(3)}
    with pytest.raises(ValueError, match=r"none of the formats known for ViT \(vit_pytorch, .*timm, .*stem"):
        load_pretrained(model, state)


def test_two_models_in_one_checkpoint_are_refused(model: ViT) -> None:
    state = model.state_dict()
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in state.items()}
    with pytest.raises(ValueError, match=r"more than one model in the checkpoint: 'student\.', 'teacher\.'"):
        load_pretrained(model, both)


def test_tensor_that_cannot_have_its_role_is_named() -> None:
    model = build(stem="dual_norm", qkv_bias=False)
    state = to_format(model, "vit-pytorch ViT")
    state["to_patch_embedding.2.weight"] = torch.ones(48, 100)
    with pytest.raises(ValueError, match=r"to_patch_embedding\.2\.weight of shape \(48, 100\) cannot be"):
        load_pretrained(model, state)


@pytest.mark.parametrize("part", ["query/kernel", "value/bias"])
def test_incomplete_parts_are_reported(model: ViT, part: str) -> None:
    state = to_format(model, "vit_jax")
    del state[f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/{part}"]
    with pytest.raises(ValueError, match=r"missing \(1\): blocks\.1\.attention\.to_qkv"):
        load_pretrained(model, state)


def as_vit_jax(reference: VisionTransformer) -> dict[str, np.ndarray]:
    """Write timm's weights as Google's program does, a tensor at a time."""
    state = {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
    dim, heads = reference.embed_dim, reference.blocks[0].attn.num_heads
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(reference.blocks)):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for number, name in ((0, "norm1"), (2, "norm2")):
            arrays[f"{theirs}/LayerNorm_{number}/scale"] = state[f"{ours}.{name}.weight"]
            arrays[f"{theirs}/LayerNorm_{number}/bias"] = state[f"{ours}.{name}.bias"]
        for number, name in enumerate(("query", "key", "value")):
            rows = slice(number * dim, (number + 1) * dim)
            kernel = state[f"{ours}.attn.qkv.weight"][rows].T
            arrays[f"{attention}/{name}/kernel"] = kernel.reshape(dim, heads, dim // heads)
            arrays[f"{attention}/{name}/bias"] = state[f"{ours}.attn.qkv.bias"][rows].reshape(heads, -1)
        kernel = state[f"{ours}.attn.proj.weight"].T
        arrays[f"{attention}/out/kernel"] = kernel.reshape(heads, dim // heads, dim)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for number in (0, 1):
            dense = f"{theirs}/MlpBlock_3/Dense_{number}"
            arrays[f"{dense}/kernel"] = state[f"{ours}.mlp.fc{number + 1}.weight"].T
            arrays[f"{dense}/bias"] = state[f"{ours}.mlp.fc{number + 1}.bias"]
    return arrays


@pytest.fixture
def timm_vit() -> VisionTransformer:
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
    reference = VisionTransformer(**sizes, num_classes=7)
    randomise(reference)
    return reference


@torch.inference_mode()
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_npz_of_google(tmp_path: Path, timm_vit: VisionTransformer, prefix: str) -> None:
    path = tmp_path / "vit.npz"
    np.savez(path, **{prefix + name: array for name, array in as_vit_jax(timm_vit).items()})
    model = build().eval()
    report = load_pretrained(model, path)
    assert report.format == "vit_jax"
    read_by_timm = VisionTransformer(
        img_size=48, patch_size=8, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2, num_classes=7
    ).eval()
    read_by_timm.load_pretrained(str(path))
    x = images(48, 48)
    assert difference(model(x), timm_vit(x)) < TOLERANCE
    assert difference(model(x), read_by_timm(x)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_jax", "big_vision"])
@pytest.mark.parametrize("pool", ["cls", "map"])
def test_npz_that_timm_reads(tmp_path: Path, model: ViT, name: str, pool: str) -> None:
    if pool == "map":
        model = build(pool="map")
        randomise(model)
    model.eval()
    path = tmp_path / "vit.npz"
    np.savez(path, **{key: tensor.numpy() for key, tensor in to_format(model, name).items()})
    reference = VisionTransformer(
        img_size=48,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
        num_classes=7,
        class_token=pool == "cls",
        global_pool="token" if pool == "cls" else "map",
    ).eval()
    reference.load_pretrained(str(path))
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE


def test_training_checkpoint_of_lightning(tmp_path: Path, model: ViT) -> None:
    state: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": []}, path)
    again = build()
    assert load_pretrained(again, path).format == "vit_pytorch"
    assert_same_weights(model, again)


def test_every_registered_model_knows_its_formats() -> None:
    model = create_model("simple_vit_tiny_patch32_224", depth=1)
    assert isinstance(model, SimpleViT)
    assert load_pretrained(model, to_format(model, "timm")).format == "timm"
