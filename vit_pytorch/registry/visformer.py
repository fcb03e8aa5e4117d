"""Visformer's models (Chen et al. 2021)."""

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.visformer import Visformer

# name: channels of the first stage and of the stem, heads, parameters
MODELS = {
    "visformer_tiny": (96, 16, 3, 10_321_368),
    "visformer_small": (192, 32, 6, 40_219_592),
}
# Maps of 8, 4 and 2 cells.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 1, 1),
    "heads": 2,
    "stem_dim": 8,
    "mlp_ratio": 2,
    "conv_groups": 4,
}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=Visformer,
        config={
            "image_size": 224,
            "num_classes": 1000,
            "dim": dim,
            "depth": (7, 4, 4),
            "heads": heads,
            "stem_dim": stem_dim,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        hub_id=f"timm/{name}.in1k",
        exceptions=FOLDED,
    )
    for name, (dim, stem_dim, heads, parameters) in MODELS.items()
]
