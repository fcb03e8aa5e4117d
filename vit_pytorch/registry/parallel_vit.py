"""Parallel ViTs and their sequential twins: timm's, and those of the authors' code (arXiv:2203.09795)."""

from collections.abc import Mapping
from typing import Any

from vit_pytorch.base import VisionModel
from vit_pytorch.parallel_vit import ParallelViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.vit import ViT

TIMM = {"layer_scale": 1e-5}
AUTHORS: dict[str, Any] = {"no_embed_class": True}
AUTHORS_LS = {**AUTHORS, "layer_scale": 1e-4}
# The same, as the plain ViT says it.
PLAIN: dict[str, Any] = {"positions": {"kind": "learned", "class_token": False}}
PLAIN_LS = {**PLAIN, "layer_scale": 1e-4}
AUTHORS_PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9}


def _entry(name: str, size: str, depth: int, parameters: int, options: Mapping[str, Any]) -> ModelEntry:
    architecture: type[VisionModel] = ParallelViT if depth == 18 else ViT
    sizes = {**SIZES[size], "depth": depth}
    return ModelEntry(
        name=name,
        architecture=architecture,
        config={"image_size": 224, "patch_size": 16, "num_classes": 1000, **sizes, **options},
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE if options is TIMM else AUTHORS_PREPARE,
    )


ENTRIES = [
    _entry("vit_small_patch16_18x2_224", "small", 18, 64_665_448, TIMM),
    _entry("vit_base_patch16_18x2_224", "base", 18, 256_731_880, TIMM),
    _entry("vit_small_patch16_36x1_224", "small", 36, 64_665_448, TIMM),
    _entry("deit_small_patch16_18x2", "small", 18, 64_637_416, AUTHORS),
    _entry("deit_small_patch16_18x2_LS", "small", 18, 64_665_064, AUTHORS_LS),
    _entry("deit_base_patch16_18x2", "base", 18, 256_675_816, AUTHORS),
    _entry("deit_base_patch16_18x2_LS", "base", 18, 256_731_112, AUTHORS_LS),
    _entry("deit_small_patch16_36", "small", 36, 64_637_416, PLAIN),
    _entry("deit_small_patch16_36_LS", "small", 36, 64_665_064, PLAIN_LS),
    _entry("deit_base_patch16_36x1", "base", 36, 256_675_816, PLAIN),
    _entry("deit_base_patch16_36x1_LS", "base", 36, 256_731_112, PLAIN_LS),
]
