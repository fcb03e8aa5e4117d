"""The LeViT paper's five models, distilled as published (Graham et al. 2021, table 2)."""

from vit_pytorch.levit import LeViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {
    "128s": {"dim": (128, 256, 384), "depth": (2, 3, 4), "heads": (4, 6, 8), "mlp_mult": 2, "dim_key": 16},
    "128": {"dim": (128, 256, 384), "depth": (4, 4, 4), "heads": (4, 8, 12), "mlp_mult": 2, "dim_key": 16},
    "192": {"dim": (192, 288, 384), "depth": (4, 4, 4), "heads": (3, 5, 6), "mlp_mult": 2, "dim_key": 32},
    "256": {"dim": (256, 384, 512), "depth": (4, 4, 4), "heads": (4, 6, 8), "mlp_mult": 2, "dim_key": 32},
    "384": {"dim": (384, 512, 768), "depth": (4, 4, 4), "heads": (6, 9, 12), "mlp_mult": 2, "dim_key": 32},
}
PARAMETERS = {"128s": 7_777_058, "128": 9_213_936, "192": 10_947_069, "256": 18_893_876, "384": 39_128_836}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9}
TINY = {
    "image_size": 128,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 2, 1),
    "heads": (2, 3, 2),
    "dim_key": 8,
}


def _entry(size: str) -> ModelEntry:
    name = f"levit_{size}"
    return ModelEntry(
        name=name,
        architecture=LeViT,
        config={"image_size": 224, "num_classes": 1000, **SIZES[size], "distilled": True},
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.fb_dist_in1k",
    )


ENTRIES = [_entry(size) for size in SIZES]
