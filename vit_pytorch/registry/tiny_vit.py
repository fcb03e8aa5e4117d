"""TinyViT's models (Wu et al. 2022, table 6)."""

from typing import Any

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.tiny_vit import TinyViT

SMALL: dict[str, Any] = {"dim": (64, 128, 160, 320), "num_classes": 21841}
MIDDLE: dict[str, Any] = {"dim": (64, 128, 256, 448), "num_classes": 21841}
LARGE: dict[str, Any] = {"dim": (96, 192, 384, 576)}
# name: parameters with 1000 classes, arguments
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "tiny_vit_5m_224": (5_392_764, SMALL),
    "tiny_vit_11m_224": (10_996_972, MIDDLE),
    "tiny_vit_21m_224": (21_198_568, {**LARGE, "num_classes": 21841}),
    "tiny_vit_21m_384": (21_230_488, {**LARGE, "window_size": (12, 24, 12)}),
    "tiny_vit_21m_512": (21_268_120, {**LARGE, "window_size": (16, 32, 16)}),
}
# Maps of 16, 8 and 4 cells: windows that divide the map, and one that does not.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 1, 2),
    "heads": (2, 4),
    "window_size": (4, 3),
    "mlp_ratio": 2,
}
CROPS: dict[int, dict[str, Any]] = {
    224: {"crop_pct": 0.95},
    384: {"crop_pct": 1.0},
    512: {"crop_pct": 1.0, "crop_mode": "squash"},
}


def _entry(name: str) -> ModelEntry:
    parameters, arguments = MODELS[name]
    size = int(name[-3:])
    tag = "dist_in22k" if size == 224 else "dist_in22k_ft_in1k"
    return ModelEntry(
        name=name,
        architecture=TinyViT,
        config={"image_size": size, "num_classes": 1000, **arguments},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", **CROPS[size]},
        hub_id=f"timm/{name}.{tag}",
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
