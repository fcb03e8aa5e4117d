"""A base and its adapter as one model: what the adapter computes, under the interface of all models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import SimpleViT, ViT, create_model
from vit_pytorch.extractor import Extractor
from vit_pytorch.layers.patches import LinearStem
from vit_pytorch.layers.tokens import Head
from vit_pytorch.memory_vit import MemoryViT
from vit_pytorch.recorder import Recorder
from vit_pytorch.training.optim import layer_scales

SIZES: dict[str, Any] = {
    "image_size": 40,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "dim_head": 12,
    "mlp_dim": 48,
}
BASES = {
    "vit": lambda: ViT(**SIZES),
    "registers": lambda: ViT(
        **SIZES, num_registers=2, stem=LinearStem(pre_norm=True), head=Head(norm=True), layer_scale=0.1
    ),
    "mean": lambda: ViT(**SIZES, pool="mean"),
    "simple_vit": lambda: SimpleViT(**SIZES),
}
CASES = [(base, mode) for base in BASES for mode in ("extend", "finetune")]
CASES = [case for case in CASES if case not in (("mean", "finetune"), ("simple_vit", "finetune"))]


def build(base: str = "vit", mode: str = "extend", **options: Any) -> MemoryViT:
    torch.manual_seed(0)
    options = {"num_classes": 3, "num_memories_per_layer": 4, **options}
    model = MemoryViT.around(BASES[base](), mode=mode, **options)
    randomise(model)
    return model.eval()


@pytest.fixture(params=CASES, ids=" ".join)
def model(request: pytest.FixtureRequest) -> MemoryViT:
    return build(*request.param)


def gradients(model: MemoryViT, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def test_computes_what_the_adapter_computes(model: MemoryViT) -> None:
    x = images(40, 40)
    want = model.adapter(x)
    assert difference(model(x), want) < TOLERANCE
    features = model.forward_features(x)
    assert features.shape == (2, model.num_prefix_tokens + 25, 24)
    pooled = model.forward_head(features, pre_logits=True)
    assert model.get_classifier()(pooled).equal(model(x))
    if model.adapter.mode == "extend":
        assert difference(features[:, 1:], model.adapter.vit.forward_features(x)) < TOLERANCE


@torch.no_grad()
def test_intermediates(model: MemoryViT) -> None:
    x = images(40, 40)
    last, found = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, output_fmt="NLC")
    assert last.equal(model.forward_features(x))
    patches, prefix = found[-1]
    assert torch.cat([prefix, patches], dim=1).equal(last)
    (first,) = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert first.shape == (2, 24, 5, 5)
    watched = Extractor(model, 0, return_embeddings_only=True)(x)
    tokens = torch.cat(watched, dim=1)
    assert tokens[:, -25:].equal(first.flatten(2).transpose(1, 2))
    assert len(model.feature_info) == 2
    assert [len(part) for part in Recorder(model).maps(x)] == [2] * (2 + 2 * (model.adapter.mode == "extend"))


def test_saved_and_loaded(model: MemoryViT, tmp_path: Any) -> None:
    model.save_pretrained(tmp_path)
    loaded = create_model(tmp_path)
    assert type(loaded) is MemoryViT
    assert loaded(images(40, 40)).equal(model(images(40, 40)))
    assert loaded.default_cfg == model.default_cfg
    assert not any(p.requires_grad for p in loaded.adapter.vit.parameters())


@pytest.mark.parametrize("num_classes", [0, 5])
def test_another_classifier(tmp_path: Any, num_classes: int) -> None:
    model = build()
    model.reset_classifier(num_classes, global_pool="token")
    assert model(images(40, 40)).shape == (2, num_classes or model.head_hidden_size)
    model.save_pretrained(tmp_path)
    assert create_model(tmp_path)(images(40, 40)).equal(model(images(40, 40)))
    assert build(num_classes=num_classes)(images(40, 40)).shape == (2, num_classes or 24)


def test_the_task_alone_learns(model: MemoryViT) -> None:
    model.train()
    assert not any(part.training for part in model.adapter.vit.modules())
    x = images(40, 40)
    want = gradients(model, x)
    tokens = {"adapter.task.class_token", "adapter.task.memories"}
    assert want.keys() == tokens | {"adapter.task.head.weight", "adapter.task.head.bias"}
    assert all(gradient.any() for gradient in want.values())
    assert tokens <= model.no_weight_decay() <= dict(model.named_parameters()).keys()
    assert set(layer_scales(model, 0.5).values()) == {1.0}
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(model, x), want)


def test_the_base_is_not_copied() -> None:
    vit = BASES["vit"]()
    model = MemoryViT.around(vit, num_classes=3)
    assert model.adapter.vit is vit
    assert model.adapter.task.class_token.equal(vit.prefix.class_token + vit.positions.table[:, :1])
    assert model.config["base"] == {"architecture": "ViT", **vit.config}


@torch.no_grad()
def test_compiles_and_exports(model: MemoryViT) -> None:
    x = images(40, 40, batch=3)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    program = export(model, (x,), dynamic_shapes=({0: Dim("batch", max=4096)},), strict=True)
    torch.testing.assert_close(program.module()(x[:2]), model(x[:2]))


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="the base of a MemoryViT must be a ViT or a SimpleViT, got XCiT"):
        MemoryViT.around(create_model("xcit_nano_12_p16_224", depth=1), num_classes=3)
    with pytest.raises(ValueError, match="architecture must be one of ViT, SimpleViT; got 'CaiT'"):
        MemoryViT(base={**SIZES, "architecture": "CaiT"}, num_classes=3)
    with pytest.raises(ValueError, match="pooling cannot be 'mean'"):
        build().reset_classifier(3, "mean")
    with pytest.raises(ValueError, match="expected 3 channels, got 1"):
        build()(torch.randn(1, 1, 40, 40))
