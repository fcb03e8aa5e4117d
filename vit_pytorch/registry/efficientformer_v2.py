"""EfficientFormerV2's models, distilled as published (Li et al. 2022, table 1)."""

from typing import Any

from vit_pytorch.efficientformer_v2 import EfficientFormerV2
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry


def _ratios(wide: int, narrow: int, wide_again: int) -> tuple[int, ...]:
    """Return ratios of 4 at the ends of a stage, and of 3 between."""
    return (4,) * wide + (3,) * narrow + (4,) * wide_again


# name: channels and blocks of each stage, blocks with attention, hidden dimensions, parameters
MODELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, tuple[Any, ...], int]] = {
    "efficientformerv2_s0": (
        (32, 48, 96, 176),
        (2, 2, 6, 4),
        2,
        (4, 4, _ratios(1, 3, 2), _ratios(1, 2, 1)),
        3_600_256,
    ),
    "efficientformerv2_s1": (
        (32, 48, 120, 224),
        (3, 3, 9, 6),
        2,
        (4, 4, _ratios(2, 4, 3), _ratios(2, 2, 2)),
        6_185_560,
    ),
    "efficientformerv2_s2": (
        (32, 64, 144, 288),
        (4, 4, 12, 8),
        4,
        (4, 4, _ratios(2, 6, 4), _ratios(2, 4, 2)),
        12_710_112,
    ),
    "efficientformerv2_l": (
        (40, 80, 192, 384),
        (5, 5, 15, 10),
        6,
        (4, 4, _ratios(4, 7, 4), _ratios(3, 4, 3)),
        26_322_288,
    ),
}
# Maps of 16, 8, 4 and 2 cells.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 8, 16, 24),
    "depth": (1, 1, 2, 2),
    "attention_depth": 1,
    "heads": 2,
    "dim_key": 8,
    "down_dim_key": 4,
    "value_ratio": 2,
    "mlp_ratio": (2.0, 2.0, (2.0, 1.5), 2.0),
}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=EfficientFormerV2,
        config={
            "image_size": 224,
            "num_classes": 1000,
            "dim": dim,
            "depth": depth,
            "attention_depth": attention_depth,
            "mlp_ratio": ratios,
            "distilled": True,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.95},
        hub_id=f"timm/{name}.snap_dist_in1k",
        exceptions=FOLDED,
    )
    for name, (dim, depth, attention_depth, ratios, parameters) in MODELS.items()
]
