"""The ViT paper's sizes (Dosovitskiy et al. 2020, table 1); Ti and S are those of arXiv:2106.10270.

Giant and gigantic are those of arXiv:2106.04560 (table 2), so400m that of arXiv:2305.13035.
"""

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.vit import ViT

SIZES = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3, "mlp_dim": 768},
    "xsmall": {"dim": 256, "depth": 10, "heads": 4, "mlp_dim": 1024},
    "small": {"dim": 384, "depth": 12, "heads": 6, "mlp_dim": 1536},
    "medium": {"dim": 512, "depth": 12, "heads": 8, "mlp_dim": 2048},
    "betwixt": {"dim": 640, "depth": 12, "heads": 10, "mlp_dim": 2560},
    "base": {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "plus": {"dim": 896, "depth": 12, "heads": 14, "mlp_dim": 3584},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
    "huge": {"dim": 1280, "depth": 32, "heads": 16, "mlp_dim": 5120, "dim_head": 80},
    "so400m": {"dim": 1152, "depth": 27, "heads": 16, "mlp_dim": 4304, "dim_head": 72},
    "giant": {"dim": 1408, "depth": 40, "heads": 16, "mlp_dim": 6144, "dim_head": 88},
    # DINOv2's, of gated feed-forwards
    "giant2": {"dim": 1536, "depth": 40, "heads": 24, "mlp_dim": 4096},
    "giantopt": {"dim": 1536, "depth": 40, "heads": 16, "mlp_dim": 6144, "dim_head": 96},
    "gigantic": {"dim": 1664, "depth": 48, "heads": 16, "mlp_dim": 8192, "dim_head": 104},
}
# Parameters, and timm's release where weights are published.
AUGREG = "augreg_in21k_ft_in1k"
MODELS = {
    "vit_tiny_patch14_224": (5_694_376, None),
    "vit_tiny_patch16_224": (5_717_416, AUGREG),
    "vit_tiny_patch16_384": (5_790_376, AUGREG),
    "vit_tiny_patch32_224": (6_131_560, None),
    "vit_small_patch8_224": (22_055_272, "dino"),
    "vit_small_patch14_224": (22_004_584, None),
    "vit_small_patch16_224": (22_050_664, AUGREG),
    "vit_small_patch16_384": (22_196_584, AUGREG),
    "vit_small_patch32_224": (22_878_952, AUGREG),
    "vit_small_patch32_384": (22_915_432, AUGREG),
    "vit_base_patch8_224": (86_576_872, "augreg2_in21k_ft_in1k"),
    "vit_base_patch14_224": (86_475_496, None),
    "vit_base_patch16_224": (86_567_656, "augreg2_in21k_ft_in1k"),
    "vit_base_patch16_384": (86_859_496, AUGREG),
    "vit_base_patch32_224": (88_224_232, AUGREG),
    "vit_base_patch32_384": (88_297_192, AUGREG),
    "vit_large_patch14_224": (304_203_752, None),
    "vit_large_patch16_224": (304_326_632, AUGREG),
    "vit_large_patch16_384": (304_715_752, AUGREG),
    "vit_large_patch32_224": (306_535_400, "orig_in21k"),
    "vit_large_patch32_384": (306_632_680, "orig_in21k_ft_in1k"),
    "vit_huge_patch14_224": (632_045_800, "orig_in21k"),
    "vit_huge_patch16_224": (632_199_400, None),
    "vit_huge_patch32_224": (634_960_360, None),
    "vit_giant_patch14_224": (1_012_611_432, None),
    "vit_gigantic_patch14_224": (1_844_440_680, None),
}
PREPARE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 0.9}
TINY = {"image_size": 32, "patch_size": 4, "dim": 24, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 48}


def _entry(name: str, parameters: int, tag: str | None) -> ModelEntry:
    _, size, patch, image_size = name.split("_")
    image = int(image_size)
    colours = IMAGENET if tag == "dino" else {}
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": image,
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": 0 if tag in ("dino", "orig_in21k") else 1000,
            **SIZES[size],
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg={**PREPARE, **colours, "crop_pct": 0.9 if image == 224 else 1.0},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
    )


ENTRIES = [_entry(name, *rest) for name, rest in MODELS.items()]
