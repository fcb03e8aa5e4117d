"""The SepViT paper's models at four sizes (Li et al. 2022, table 2)."""

from typing import Any

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.sep_vit import SepViT

SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "lite": ({"dim": 32, "heads": (1, 2, 4, 8), "depth": (1, 2, 6, 2)}, 3_661_128),
    "tiny": ({"dim": 96, "heads": (3, 6, 12, 24), "depth": (1, 2, 6, 2)}, 31_182_856),
    "small": ({"dim": 96, "heads": (3, 6, 12, 24), "depth": (1, 2, 14, 2)}, 46_570_504),
    "base": ({"dim": 128, "heads": (4, 8, 16, 32), "depth": (1, 2, 14, 2)}, 82_377_064),
}
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 8,
    "dim_head": 8,
    "heads": (1, 2, 4, 8),
    "depth": (1, 2, 1, 1),
    "window_size": 2,
    "mlp_ratio": 2,
}


def _entry(size: str) -> ModelEntry:
    config, parameters = SIZES[size]
    return ModelEntry(
        name=f"sepvit_{size}",
        architecture=SepViT,
        config={"image_size": 224, "num_classes": 1000, **config},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        exceptions={
            **FOLDED,
            "input_size": "a stage of a single window has no window tokens, one of a larger map has",
        },
    )


ENTRIES = [_entry(size) for size in SIZES]
