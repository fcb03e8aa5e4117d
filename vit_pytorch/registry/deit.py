"""DeiT's models: the ViT's sizes, each plain and with a distillation token (Touvron et al. 2020, table 1).

DeiT III (arXiv:2204.07118) has LayerScale, and no position for the class token.
"""

from vit_pytorch.distill import DistillableViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "deit3_huge_patch14_224": 632_126_440,
}

DISTILLED = {
    "features_then_head": "the embedding is the mean of two tokens with a classifier each, as in timm"
}


def _entry(name: str) -> ModelEntry:
    family, size, *kind, patch, image_size = name.split("_")
    image = int(image_size)
    third = {"layer_scale": 1e-6, "positions": {"kind": "learned", "class_token": False}}
    return ModelEntry(
        name=name,
        architecture=DistillableViT if kind else ViT,
        config={
            "image_size": image,
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": 1000,
            **SIZES[size],
            **(third if family == "deit3" else {}),
        },
        parameters=PARAMETERS[name],
        tiny={**TINY, "num_classes": 7},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9 if image == 224 else 1.0},
        hub_id=f"timm/{name}.fb_in1k",
        exceptions=DISTILLED if kind else {},
    )


ENTRIES = [_entry(name) for name in PARAMETERS]
