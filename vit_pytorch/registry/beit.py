"""BEiT (arXiv:2106.08254), BEiT v2 (arXiv:2208.06366) and EVA (arXiv:2211.07636): no biases of keys."""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, NO_BATCH, ModelEntry
from vit_pytorch.registry.plain import NORMED_MEAN
from vit_pytorch.registry.towers import CLIP, HALF
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

BEIT: dict[str, Any] = {**NORMED_MEAN, "qkv_bias": "qv", "positions": "relative_by_layer", "layer_scale": 0.1}
EVA: dict[str, Any] = {**NORMED_MEAN, "qkv_bias": "qv"}
TOWER: dict[str, Any] = {"qkv_bias": "qv", "num_classes": 1024}
# name: parameters, timm's release, options, and how images are prepared
MODELS: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    "beit_base_patch16_224": (86_530_984, "in22k_ft_in22k_in1k", BEIT, {**HALF, "crop_pct": 0.9}),
    "beit_base_patch16_384": (86_744_104, "in22k_ft_in22k_in1k", BEIT, HALF),
    "beit_large_patch16_224": (304_430_568, "in22k_ft_in22k_in1k", BEIT, {**HALF, "crop_pct": 0.9}),
    "beit_large_patch16_384": (304_998_888, "in22k_ft_in22k_in1k", BEIT, HALF),
    "beit_large_patch16_512": (305_674_728, "in22k_ft_in22k_in1k", BEIT, HALF),
    "beitv2_base_patch16_224": (86_530_984, "in1k_ft_in22k_in1k", BEIT, {"crop_pct": 0.9}),
    "beitv2_large_patch16_224": (304_430_568, "in1k_ft_in22k_in1k", BEIT, {"crop_pct": 0.95}),
    "eva_giant_patch14_224": (1_012_555_112, "clip_ft_in1k", EVA, {**CLIP, "crop_pct": 0.9}),
    "eva_giant_patch14_336": (1_013_005_672, "clip_ft_in1k", EVA, {**CLIP, "crop_mode": "squash"}),
    "eva_giant_patch14_560": (1_014_447_464, "m30m_ft_in22k_in1k", EVA, {"crop_mode": "squash"}),
    "eva_giant_patch14_clip_224": (1_012_555_112, "laion400m", TOWER, {**CLIP, "crop_pct": 0.9}),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, options, prepare = MODELS[name]
    _, size, patch, *_, image_size = name.split("_")
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": int(image_size),
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": 1000,
            **SIZES[size],
            **options,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0, **prepare},
        hub_id=f"timm/{name}.{tag}",
        exceptions=NO_BATCH if options is BEIT else {},
    )


ENTRIES = [_entry(name) for name in MODELS]
