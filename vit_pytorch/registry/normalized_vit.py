"""Normalized ViTs of the ViT paper's sizes; nobody has published weights."""

from vit_pytorch.normalized_vit import NormalizedViT
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY

PARAMETERS = {"tiny": 7_481_320, "small": 29_117_416, "base": 114_856_936}


def _entry(size: str) -> ModelEntry:
    return ModelEntry(
        name=f"nvit_{size}_patch16_224",
        architecture=NormalizedViT,
        config={"image_size": 224, "patch_size": 16, "num_classes": 1000, "pool": "mean", **SIZES[size]},
        parameters=PARAMETERS[size],
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
    )


ENTRIES = [_entry(size) for size in PARAMETERS]
