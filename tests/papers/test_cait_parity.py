"""CaiT computes what timm's CaiT computes, and what the paper says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.models.cait import Cait
from torch import nn

from tests.papers.family import Family, Named
from tests.papers.reference import TOLERANCE, difference, images, randomise, shapes_only
from vit_pytorch import create_model, list_models, load_pretrained
from vit_pytorch.cait import CaiT
from vit_pytorch.layers.attention import TalkingHeads
from vit_pytorch.layers.blocks import LayerScale
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

OURS = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 3,
    "cls_depth": 2,
    "heads": 3,
    "mlp_dim": 192,
}
THEIRS = {"img_size": 48, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cls": ({}, {}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
    "three class layers": ({"cls_depth": 3}, {"depth_token_only": 3}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "not square": ({"image_size": (32, 72)}, {"img_size": (32, 72)}),
}
FAMILY = Family(
    CaiT,
    Cait,
    OURS,
    THEIRS,
    OPTIONS,
    module="cait",
    named=[Named("cait_xxs24_224"), Named("cait_xs24_384", {"depth": 2}, {"depth": 2})],
    maps=("cls", "not square"),
    norms=[(False, False), (True, True)],
    trained=("cls",),
)


@pytest.mark.parametrize("name", timm.list_models("cait_*"))
def test_named_model_has_timms_shapes(name: str) -> None:
    with shapes_only():
        model, reference = create_model(name), timm.create_model(name)
    written = to_format(model, "timm")
    state = reference.state_dict()
    assert {key: tensor.shape for key, tensor in written.items()} == {k: v.shape for k, v in state.items()}
    assert sum(p.numel() for p in reference.parameters()) == find_entry(name).parameters
    cfg = reference.pretrained_cfg
    assert find_entry(name).hub_id == cfg["hf_hub_id"]
    for key in ("mean", "std", "interpolation", "crop_pct", "input_size"):
        assert model.default_cfg[key] == cfg[key]


@torch.inference_mode()
def test_authors_files_load() -> None:
    """They hold the weights under "model", each name behind the "module." of data-parallel training."""
    reference = randomise(Cait(**THEIRS))
    model = CaiT(**OURS).eval()
    report = load_pretrained(model, {f"module.{k}": v for k, v in reference.state_dict().items()})
    assert (report.kept, report.dropped) == ((), ())
    x = images(48, 48)
    assert difference(model(x), reference(x)) < TOLERANCE


def test_heads_talk_pair_by_pair() -> None:
    """Scores and weights of every pair of tokens are mixed over the heads, with biases."""
    talk = randomise(TalkingHeads(3)).double()
    q, k, v = torch.randn(3, 2, 3, 4, 5, dtype=torch.float64)
    before, after = (mix.weight.flatten(1) for mix in (talk.mix_scores, talk.mix_weights))
    want = torch.zeros_like(v)
    for b in range(2):
        for n in range(4):
            scores = torch.stack([k[b, h] @ q[b, h, n] for h in range(3)]) / math.sqrt(5)
            mixed = [sum(before[g, h] * scores[h] for h in range(3)) for g in range(3)]
            weights = [(mixed[g] + talk.mix_scores.bias[g]).softmax(0) for g in range(3)]
            for g in range(3):
                weight = sum(after[g, h] * weights[h] for h in range(3)) + talk.mix_weights.bias[g]
                want[b, g, n] = weight @ v[b, g]
    assert difference(talk(q, k, v), want) < 1e-12


def test_class_attention_reads_normed_patches_and_its_heads_do_not_talk() -> None:
    model = CaiT(**OURS)
    assert not any(isinstance(module, TalkingHeads) for module in model.class_blocks.modules())
    assert sum(isinstance(module, TalkingHeads) for module in model.blocks.modules()) == 3
    randomise(model)
    block = model.class_blocks[0]
    x = torch.randn(2, 37, 48)
    louder = torch.cat([x[:, :1], 100 * x[:, 1:]], dim=1)
    assert difference(block(louder)[:, 0], block(x)[:, 0]) < 1e-4


def test_class_attention_leaves_the_patches() -> None:
    model = randomise(CaiT(**OURS))
    x = torch.randn(2, 37, 48)
    after = model.class_blocks[1](model.class_blocks[0](x))
    assert after[:, 1:].equal(x[:, 1:])
    assert difference(after[:, 0], x[:, 0]) > 0.1


@pytest.mark.parametrize(
    ("depth", "start"), [(12, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6), (48, 1e-6)]
)
def test_layer_scale_starts_by_the_total_depth(depth: int, start: float) -> None:
    model = CaiT(**{**OURS, "depth": depth})
    scales = [module.gamma for module in model.modules() if isinstance(module, LayerScale)]
    assert len(scales) == 2 * (depth + 2)
    assert all(gamma.eq(start).all() for gamma in scales)


@pytest.mark.parametrize("name", list_models("cait_*"))
def test_layer_scale_starts_as_timms(name: str) -> None:
    small = timm.create_model(name, depth=1, embed_dim=48, num_heads=3, img_size=32)
    model = create_model(name, dim=48, heads=3, mlp_dim=48, image_size=32)
    assert model.blocks[0].scale1.gamma.equal(small.blocks[0].gamma_1)


@torch.no_grad()
def test_layer_dropout_is_by_sample_and_in_training_only() -> None:
    model = randomise(CaiT(**OURS, layer_dropout=0.5))
    plain = CaiT(**OURS).eval()
    plain.load_state_dict(model.state_dict())
    x = images(48, 48, batch=1).expand(64, -1, -1, -1)
    assert model(x).equal(plain(x))
    model.train()
    tokens = model.embed(x)
    gained = model.blocks[0].drop_path(tokens)
    assert 0 < gained.flatten(1).any(dim=1).sum() < 64
    assert all(block.drop_path.p == 0.5 for block in model.blocks)
    assert all(isinstance(block.drop_path, nn.Identity) for block in model.class_blocks)
