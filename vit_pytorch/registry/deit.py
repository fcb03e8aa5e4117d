"""DeiT's models: the ViT's sizes, each plain and with a distillation token (Touvron et al. 2020, table 1)."""

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
}

DISTILLED = {
    "features_then_head": "the embedding is the mean of two tokens with a classifier each, as in timm"
}


def _entry(name: str) -> ModelEntry:
    _, size, *kind, _, image_size = name.split("_")
    image = int(image_size)
    return ModelEntry(
        name=name,
        architecture=DistillableViT if kind else ViT,
        config={"image_size": image, "patch_size": 16, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[name],
        tiny={**TINY, "num_classes": 7},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9 if image == 224 else 1.0},
        hub_id=f"timm/{name}.fb_in1k",
        exceptions=DISTILLED if kind else {},
    )


ENTRIES = [_entry(name) for name in PARAMETERS]
