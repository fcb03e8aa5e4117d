"""The LeViT paper's models, distilled as published (Graham et al. 2021, table 2), and timm's further ones.

timm has each a second time with 1 x 1 convolutions in place of linear layers, which is the same function.
"""

from typing import Any

from vit_pytorch.levit import LeViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

PAPERS: dict[str, dict[str, Any]] = {
    "128s": {"dim": (128, 256, 384), "depth": (2, 3, 4), "heads": (4, 6, 8), "dim_key": 16},
    "128": {"dim": (128, 256, 384), "depth": (4, 4, 4), "heads": (4, 8, 12), "dim_key": 16},
    "192": {"dim": (192, 288, 384), "depth": (4, 4, 4), "heads": (3, 5, 6), "dim_key": 32},
    "256": {"dim": (256, 384, 512), "depth": (4, 4, 4), "heads": (4, 6, 8), "dim_key": 32},
    "384": {"dim": (384, 512, 768), "depth": (4, 4, 4), "heads": (6, 9, 12), "dim_key": 32},
}
# Without published weights.
FURTHER: dict[str, dict[str, Any]] = {
    "256d": {**PAPERS["256"], "depth": (4, 8, 6)},
    "384_s8": {**PAPERS["384"], "stem_depth": 3},
    "512": {"dim": (512, 768, 1024), "depth": (4, 4, 4), "heads": (8, 12, 16), "dim_key": 64},
    "512_s8": {
        "dim": (512, 640, 896),
        "depth": (4, 4, 4),
        "heads": (8, 10, 14),
        "dim_key": 64,
        "stem_depth": 3,
    },
    "512d": {"dim": (512, 640, 768), "depth": (4, 8, 6), "heads": (8, 10, 12), "dim_key": 64},
}
PARAMETERS = {
    "128s": 7_777_058,
    "128": 9_213_936,
    "192": 10_947_069,
    "256": 18_893_876,
    "384": 39_128_836,
    "256d": 26_210_788,
    "384_s8": 39_118_960,
    "512": 95_173_700,
    "512_s8": 74_046_696,
    "512d": 92_497_538,
}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9}
TINY = {
    "image_size": 128,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 2, 1),
    "heads": (2, 3, 2),
    "dim_key": 8,
    "stem_depth": 4,
    "act": "hardswish",
}


def _entry(prefix: str, size: str) -> ModelEntry:
    name, published = f"{prefix}_{size}", size in PAPERS
    arguments = PAPERS[size] if published else {**FURTHER[size], "act": "silu"}
    return ModelEntry(
        name=name,
        architecture=LeViT,
        config={
            "image_size": 224,
            "num_classes": 1000,
            **arguments,
            "mlp_mult": 2,
            "distilled": published or size == "384_s8",
        },
        parameters=PARAMETERS[size],
        tiny={**TINY, "distilled": True},
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.fb_dist_in1k" if published else None,
    )


ENTRIES = [_entry(prefix, size) for prefix in ("levit", "levit_conv") for size in PARAMETERS]
