"""The ViT paper's sizes (Dosovitskiy et al. 2020, table 1); Ti and S are those of arXiv:2106.10270."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.vit import ViT

SIZES = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    "small": {"dim": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "base": {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "huge": {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120, "dim_head": 80},
}
PARAMETERS = {
    ("tiny", 14): 5_694_376,
    ("tiny", 16): 5_717_416,
    ("tiny", 32): 6_131_560,
    ("small", 14): 22_004_584,
    ("small", 16): 22_050_664,
    ("small", 32): 22_878_952,
    ("base", 14): 86_475_496,
    ("base", 16): 86_567_656,
    ("base", 32): 88_224_232,
    ("large", 14): 304_203_752,
    ("large", 16): 304_326_632,
    ("large", 32): 306_535_400,
    ("huge", 14): 632_045_800,
    ("huge", 16): 632_199_400,
    ("huge", 32): 634_960_360,
}
PUBLISHED = {
    "vit_tiny_patch16_224": "augreg_in21k_ft_in1k",
    "vit_small_patch16_224": "augreg_in21k_ft_in1k",
    "vit_small_patch32_224": "augreg_in21k_ft_in1k",
    "vit_base_patch16_224": "augreg2_in21k_ft_in1k",
    "vit_base_patch32_224": "augreg_in21k_ft_in1k",
    "vit_large_patch16_224": "augreg_in21k_ft_in1k",
}
PREPARE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 0.9}
TINY = {"image_size": 32, "patch_size": 4, "dim": 24, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 48}


def _entry(size: str, patch: int) -> ModelEntry:
    name = f"vit_{size}_patch{patch}_224"
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={"image_size": 224, "patch_size": patch, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[size, patch],
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.{PUBLISHED[name]}" if name in PUBLISHED else None,
    )


ENTRIES = [_entry(size, patch) for size in SIZES for patch in (14, 16, 32)]
