"""Sapiens 2 (R. Khirodkar et al. 2026, arXiv:2604.21681): grouped queries in all but the outer layers."""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

# name: parameters, sizes
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "vit_base_patch16_sapiens2": (114_762_472, SIZES["base"]),
    "vit_large_patch16_sapiens2": (396_475_368, SIZES["large"]),
    "vit_huge_patch16_sapiens2": (815_564_520, SIZES["huge"]),
    "vit_giant_patch16_sapiens2": (1_457_011_176, {"dim": 1536, "depth": 40, "heads": 24, "mlp_dim": 6144}),
    "vit_5b_patch16_sapiens2": (
        5_069_335_976,
        {"dim": 2432, "depth": 56, "heads": 32, "dim_head": 76, "mlp_dim": 9728},
    ),
}


def _entry(name: str) -> ModelEntry:
    parameters, shape = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": (1024, 768),
            "patch_size": 16,
            "num_classes": 0,
            **shape,
            "num_registers": 8,
            "positions": "rope_normalized",
            "attention": {"kind": "grouped_query", "kv_heads": shape["heads"] // 2, "full_layers": 8},
            "qk_norm": True,
            "act": "swiglu",
            "layer_scale": (1.0, None),
            "norm": "rms",
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, "attention": {"kind": "grouped_query", "kv_heads": 1}},
        default_cfg={**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"},
        hub_id=f"timm/{name}.fb",
    )


ENTRIES = [_entry(name) for name in MODELS]
