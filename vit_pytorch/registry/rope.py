"""RoPE-ViT's models: rotary positions, with and without learned ones (Heo et al. 2024, arXiv:2403.13298)."""

from vit_pytorch.registry.entry import IMAGENET, NO_BATCH, ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

PARAMETERS = {
    ("small", "rope"): 21_984_232,
    ("small", "rope_mixed"): 21_988_840,
    ("small", "rope_ape"): 22_059_496,
    ("small", "rope_mixed_ape"): 22_064_104,
    ("base", "rope"): 86_434_792,
    ("base", "rope_mixed"): 86_444_008,
    ("base", "rope_ape"): 86_585_320,
    ("base", "rope_mixed_ape"): 86_594_536,
    ("large", "rope"): 304_174_056,
    ("large", "rope_mixed"): 304_198_632,
    ("large", "rope_ape"): 304_374_760,
    ("large", "rope_mixed_ape"): 304_399_336,
}


def _entry(size: str, kind: str) -> ModelEntry:
    name = f"vit_{size}_patch16_{kind}_224"
    rope = kind.removesuffix("_ape")
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            **SIZES[size],
            "layer_scale": 1e-5,
            "positions": [{"kind": "learned", "class_token": False}, rope] if kind.endswith("_ape") else rope,
        },
        parameters=PARAMETERS[size, kind],
        # One with both kinds of positions, one with rotary ones alone.
        tiny={**TINY, "num_classes": 7, "positions": "learned+rope" if rope == "rope" else rope},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        exceptions=NO_BATCH if "mixed" in kind else {},
        hub_id=f"timm/{name}.naver_in1k",
    )


ENTRIES = [_entry(size, kind) for size, kind in PARAMETERS]
