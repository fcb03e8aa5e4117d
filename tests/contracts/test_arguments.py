"""Whatever a constructor is given, it builds a model whose logits are finite, or refuses in a sentence."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch

from vit_pytorch.base import VisionModel
from vit_pytorch.dino import Dino
from vit_pytorch.distill import DistillWrapper
from vit_pytorch.extractor import Extractor
from vit_pytorch.levjepa import LeVJEPA
from vit_pytorch.mae import MAE
from vit_pytorch.mpp import MPP
from vit_pytorch.registry import ModelEntry, find_entry
from vit_pytorch.simmim import SimMIM
from vit_pytorch.vit_detpool import DetPoolViT
from vit_pytorch.vit_for_small_dataset import SPT
from vit_pytorch.vit_with_patch_merger import PatchMerger
from vit_pytorch.wwt import WWT

# Half of them could be meant, half could not.
INSTEAD = (
    *(1, 2, 3, 4, 5, 7, 8, 16, 64, 100, 0, 0.0, 0.1, 0.5, 0.99, 1.0, 2.0, 1e-6, 1e-30, 1e6),
    *((1, 2), (4, 8), (2, 2, 2), (1, 1, 1, 1), (2, 4, 8, 16), (3, 5), [8, 8], "mean", True, False),
    *(None, "", "x", -1, 10**9, 10**30, -0.5, 1e30, float("nan"), float("inf")),
    *((), (0,), [None], ["a"], (1, (2, 3)), {}, {"kind": "x"}, object()),
)


def changed(entry: ModelEntry, draw: random.Random) -> dict[str, Any]:
    """Return one or two arguments of a model, with values at random."""
    names = [name for name in signature(entry.architecture).parameters if name != "backbone"]
    return {name: draw.choice(INSTEAD) for name in draw.sample(names, draw.choice((1, 2)))}


def build_changed(entry: ModelEntry, some: dict[str, Any]) -> VisionModel | None:
    """Build a tiny model with some arguments changed; None if it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return entry.architecture(**{**entry.config, **entry.tiny, **some}).eval()
        except ValueError:
            return None


@torch.no_grad()
def test_any_arguments(entry: ModelEntry):
    draw = random.Random(entry.name)
    for _ in range(8):
        some = changed(entry, draw)
        model = build_changed(entry, some)
        if model is not None:
            assert model(torch.randn(2, model.channels, *model.image_size)).isfinite().all(), some


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, r"depth must be an integer in \[1, 1024\], got 0"),
        ({"depth": 10**9}, r"depth must be an integer in \[1, 1024\], got 1000000000"),
        ({"heads": 2.0}, "heads must be an integer .*, got 2.0"),
        ({"dim": None}, "dim must be an integer .*, got None"),
        ({"dim": True}, "dim must be an integer .*, got True"),
        ({"image_size": (32, 0)}, r"image_size must be an integer .* or a sequence .*, got \(32, 0\)"),
        ({"norm_eps": float("nan")}, r"norm_eps must be a number in \(0, 1000000\], got nan"),
        ({"dropout": float("nan")}, r"dropout must be a number in \[0, 1\), got nan"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"drop_path": -1}, r"drop_path must be a number in \[0, 1\), got -1"),
        ({"attn_dropout": 2}, r"attn_dropout must be a number in \[0, 1\), got 2"),
        ({"num_classes": -1}, "num_classes must be an integer .*, got -1"),
        ({"qkv_bias": "no"}, "qkv_bias must be True or False or one of qv; got 'no'"),
        ({"positions": 0.5}, r"positions must be .*, got 0\.5"),
        ({"positions": {"kind": "rope", "theta": float("inf")}}, "theta must be a number .*got inf"),
    ],
)
def test_refused_by_name(arguments: dict[str, Any], message: str):
    entry = find_entry("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=message):
        entry.build(**{**entry.tiny, **arguments})


PLAIN = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 3,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda vit: MAE(encoder=vit, decoder_dim=0), "decoder_dim must be an integer"),
        (lambda vit: SimMIM(encoder=vit, masking_ratio=float("nan")), "masking_ratio must be a number"),
        (lambda vit: Dino(vit, image_size=32, student_temp=0.0), "student_temp must be a number"),
        (lambda vit: MPP(vit, patch_size=4, dim=16, mask_prob=1.5), "mask_prob must be a number"),
        (lambda vit: MAE(encoder=3), "encoder must be a module, got 3"),
        (lambda vit: DistillWrapper(student=3, teacher=vit), "student must be a module, got 3"),
        (lambda vit: Extractor(3), "model must be a module, got 3"),
        (lambda vit: Extractor(vit, 0.5), r"a layer is a name, an index or a module of the ViT, got 0\.5"),
        (lambda vit: PatchMerger(16, 0), r"num_tokens_out must be an integer in \[1, 65536\], got 0"),
        (lambda vit: SPT(16, 4, channels=1.0), "channels must be an integer"),
        (
            lambda vit: LeVJEPA(vit, 32, local_crop_scale=0.1),
            r"local_crop_scale must be 2 numbers in .*, got 0\.1",
        ),
        (lambda vit: DetPoolViT(**PLAIN, mask_generator="x"), "mask_generator must be a module or None"),
        (lambda vit: WWT(task_heads=0.5, **PLAIN), "task_heads must be a module or a sequence of modules"),
    ],
)
def test_wrappers_refuse_by_name(build: Callable[[VisionModel], Any], message: str):
    entry = find_entry("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=message):
        build(entry.build(**entry.tiny))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("scalable_vit_small", {"mlp_ratio": (1.5, 2, 3, 4)}),
        ("sepvit_lite", {"mlp_ratio": (1, 2.5, 3, 4)}),
        ("crossformer_tiny", {"mlp_ratio": (2, 2, 2.5, 4)}),
    ],
)
def test_ratios_per_stage(name: str, arguments: dict[str, Any]):
    entry = find_entry(name)
    stages = len(entry.tiny["depth"]) if "depth" in entry.tiny else 4
    ratios = arguments["mlp_ratio"][:stages]
    model = entry.build(**{**entry.tiny, "mlp_ratio": ratios})
    found = [stage.blocks[0].feedforward.to_hidden for stage in model.stages]
    assert [layer.out_features for layer in found] == [
        int(ratio * layer.in_features) for ratio, layer in zip(ratios, found, strict=True)
    ]


def test_subclasses_may_leave_annotations_out():
    class Plain(find_entry("vit_tiny_patch16_224").architecture):
        def __init__(self, *, dim, **options):
            super().__init__(dim=dim, **options)

    sizes = {"image_size": 20, "patch_size": 4, "num_classes": 3, "depth": 1, "heads": 2, "mlp_dim": 8}
    assert Plain(dim=8, **sizes)(torch.randn(1, 3, 20, 20)).shape == (1, 3)
    with pytest.raises(ValueError, match="dim must be an integer"):
        Plain(dim="8", **sizes)
