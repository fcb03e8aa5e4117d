"""DINOv3 (O. Siméoni et al. 2025, arXiv:2508.10104), and models of its architecture.

timm has it without biases of queries, keys and values, and as "qkvb" with those of queries and values.
"""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

SWIGLU = {"act": "swiglu"}
# Parameters with a classifier of 1000 classes, which the published weights leave to the user.
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_small_patch16_dinov3": (21_971_944, SIZES["small"]),
    "vit_small_plus_patch16_dinov3": (29_068_264, {**SIZES["small"], **SWIGLU}),
    "vit_base_patch16_dinov3": (86_410_216, SIZES["base"]),
    "vit_large_patch16_dinov3": (304_104_424, SIZES["large"]),
    "vit_huge_plus_patch16_dinov3": (841_790_440, {**SIZES["huge"], "heads": 20, "dim_head": 64, **SWIGLU}),
    "vit_7b_patch16_dinov3": (
        6_720_127_976,
        {"dim": 4096, "depth": 40, "heads": 32, "dim_head": 128, "mlp_dim": 8192, **SWIGLU},
    ),
    "vit_tiny_patch16_dinov3_qkvb": (5_682_664, SIZES["tiny"]),
    "vit_small_patch16_dinov3_qkvb": (21_981_160, SIZES["small"]),
    "vit_small_plus_patch16_dinov3_qkvb": (29_077_480, {**SIZES["small"], **SWIGLU}),
    "vit_base_patch16_dinov3_qkvb": (86_428_648, SIZES["base"]),
    "vit_large_patch16_dinov3_qkvb": (304_153_576, SIZES["large"]),
    "vit_huge_plus_patch16_dinov3_qkvb": (
        841_872_360,
        {**SIZES["huge"], "heads": 20, "dim_head": 64, **SWIGLU},
    ),
    "vit_small_patch16_lingbot": (21_981_160, SIZES["small"]),
    "vit_base_patch16_lingbot": (86_428_648, SIZES["base"]),
    "vit_large_patch16_lingbot": (304_153_576, SIZES["large"]),
    "vit_giant_patch16_lingbot": (1_136_010_216, {**SIZES["giant2"], **SWIGLU}),
}


def _entry(name: str) -> ModelEntry:
    parameters, shape = MODELS[name]
    lingbot = name.endswith("lingbot")
    biased = name.endswith("qkvb") or (lingbot and "giant" not in name)
    tag = "robbyant" if lingbot else "eupe_lvd1689m" if "tiny" in name else "lvd1689m"
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": 512 if lingbot else 256,
            "patch_size": 16,
            "num_classes": 0,
            **shape,
            "pool": "cls" if lingbot else "mean",
            "class_token": True,
            "num_registers": 4,
            "positions": "rope_normalized",
            "qkv_bias": "qv" if biased else False,
            "layer_scale": 1e-5,
            "norm_eps": 1e-5,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg={
            **IMAGENET,
            "interpolation": "bilinear" if lingbot else "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash" if lingbot else "center",
        },
        hub_id=f"{'belfner' if lingbot else 'timm'}/{name}.{tag}",
    )


ENTRIES = [_entry(name) for name in MODELS]
