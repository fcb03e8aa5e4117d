"""The parallel ViT computes what timm, the authors' code and the public vit-pytorch compute."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise, shapes_only
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.layers.positions import Learned
from vit_pytorch.parallel_vit import ParallelBlock, ParallelViT
from vit_pytorch.pretrained import to_format

OURS: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 3,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 192,
}
THEIRS: dict[str, Any] = {
    "img_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "block_fn": ParallelThingsBlock,
}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "layer_scale": ({"layer_scale": 1e-5}, {"init_values": 1e-5}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "no_embed_class": ({"no_embed_class": True}, {"no_embed_class": True}),
    "mean, fc_norm": ({"pool": "mean", "class_token": True, "fc_norm": True}, {"global_pool": "avg"}),
    "mean, no class token": (
        {"pool": "mean"},
        {"global_pool": "avg", "fc_norm": False, "class_token": False},
    ),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
}


@pytest.fixture(params=OPTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[ParallelViT, VisionTransformer]:
    """Ours and timm's with the same weights."""
    ours, theirs = OPTIONS[request.param]
    reference = VisionTransformer(**{**THEIRS, **theirs})
    randomise(reference)
    model = ParallelViT(**{**OURS, **ours})
    load_pretrained(model, reference.state_dict())
    return model.eval(), reference


@torch.inference_mode()
def test_logits_equal_timms(pair: tuple[ParallelViT, VisionTransformer]) -> None:
    model, reference = pair
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE
    assert difference(model.forward_features(x), reference.forward_features(x)) < TOLERANCE


def test_weights_go_back_to_timm(pair: tuple[ParallelViT, VisionTransformer]) -> None:
    model, reference = pair
    written = to_format(model, "timm")
    state = reference.state_dict()
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_gradients_equal_timms() -> None:
    reference = randomise(VisionTransformer(**THEIRS, init_values=1e-5))
    model = ParallelViT(**OURS, layer_scale=1e-5).eval()
    load_pretrained(model, reference.state_dict())
    x = images(48, 48)
    for net in (model, reference):
        net(x).square().sum().backward()
    model.load_state_dict({name: p.grad for name, p in model.named_parameters()})
    written = to_format(model, "timm")
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(written[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("vit_small_patch16_18x2_224", 18),
        ("vit_base_patch16_18x2_224", 2),
        ("vit_small_patch16_36x1_224", 36),
    ],
)
def test_named_model_equals_timms(name: str, depth: int) -> None:
    reference = randomise(timm.create_model(name, depth=depth))
    model = create_model(name, depth=depth).eval()
    load_pretrained(model, reference.state_dict())
    x = images(224, 224, batch=1)
    assert difference(model(x), reference(x)) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_18x2_224", "vit_base_patch16_18x2_224", "vit_small_patch16_36x1_224"]
)
def test_parameter_count_equals_timms(name: str) -> None:
    with shapes_only():
        ours, theirs = create_model(name), timm.create_model(name)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@torch.inference_mode()
def test_logits_equal_the_public_packages() -> None:
    """Theirs are a subset: no biases of queries, keys and values, no LayerScale, epsilon 1e-5."""
    config, state, golden = read_golden("public_parallel_vit")
    model = ParallelViT(**config, qkv_bias=False, norm_eps=1e-5).eval()
    load_pretrained(model, state, grid="model")
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE
    assert to_format(model, "vit-pytorch parallel ViT").keys() == state.keys()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "architecture"), [("parallel_vit_deit", ParallelViT), ("sequential_vit_deit", ViT)]
)
def test_logits_equal_the_authors(name: str, architecture: type[ParallelViT] | type[ViT]) -> None:
    config, state, golden = read_golden(name)
    if architecture is ViT:
        config["positions"] = Learned(class_token=not config.pop("no_embed_class"))
    model = architecture(**config).eval()
    load_pretrained(model, state, strict=True)
    assert difference(model(golden["input"]), golden["output"]) < TOLERANCE


def test_weights_go_back_to_the_authors() -> None:
    config, state, _ = read_golden("parallel_vit_deit")
    model = ParallelViT(**config)
    load_pretrained(model, state)
    written = to_format(model, "deit")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


@torch.inference_mode()
def test_one_branch_is_the_plain_model() -> None:
    one = randomise(ParallelViT(**OURS, num_parallel_branches=1))
    plain = ViT(**OURS).eval()
    names = {"0.branch.": "", "attention.0.norm": "norm1", "feedforward.0.norm": "norm2"}
    state = one.state_dict()
    for ours, theirs in names.items():
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    plain.load_state_dict(state)
    x = images(48, 48)
    assert difference(one(x), plain(x)) < TOLERANCE


@torch.inference_mode()
def test_branches_have_no_order() -> None:
    model = randomise(ParallelViT(**OURS, num_parallel_branches=3))
    x = images(48, 48)
    expected = model(x)
    for module in model.modules():
        if isinstance(module, ParallelBlock):
            module.attention = torch.nn.ModuleList(reversed(module.attention))
            module.feedforward = torch.nn.ModuleList(reversed(module.feedforward))
    assert difference(model(x), expected) < TOLERANCE


def test_branches_are_dropped_one_by_one() -> None:
    """With each branch dropped by itself, a sample keeps both, either or none: four outputs."""
    sizes = {**OURS, "depth": 2, "drop_path": 0.5}
    model = ParallelViT(**sizes).train()
    block = model.blocks[1]
    block.feedforward = torch.nn.ModuleList()
    outputs = block(torch.randn(1, 5, 48).expand(200, -1, -1))
    assert len({round(value, 4) for value in outputs.sum(dim=(1, 2)).tolist()}) == 4


def test_options_that_contradict() -> None:
    with pytest.raises(ValueError, match=r"num_parallel_branches must be .*, got 0"):
        ParallelViT(**OURS, num_parallel_branches=0)
    with pytest.raises(ValueError, match="pool must be one of cls, mean; got 'map'"):
        ParallelViT(**OURS, pool="map")  # type: ignore[arg-type]
