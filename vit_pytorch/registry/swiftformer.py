"""SwiftFormer's models, distilled as published (Shaker et al. 2023, table 6)."""

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.swiftformer import SwiftFormer

# name: channels and blocks of each stage, parameters
MODELS = {
    "swiftformer_xs": ((48, 56, 112, 220), (3, 3, 6, 4), 3_475_360),
    "swiftformer_s": ((48, 64, 168, 224), (3, 3, 9, 6), 6_092_128),
    "swiftformer_l1": ((48, 96, 192, 384), (4, 3, 10, 5), 12_057_920),
    "swiftformer_l3": ((64, 128, 320, 512), (4, 4, 12, 6), 28_494_736),
}
# Maps of 8 and 4 cells.
TINY = {"image_size": 32, "num_classes": 7, "dim": (8, 16), "depth": (2, 1), "mlp_ratio": 2.0}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=SwiftFormer,
        config={"image_size": 224, "num_classes": 1000, "dim": dim, "depth": depth, "distilled": True},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.95},
        hub_id=f"timm/{name}.dist_in1k",
        exceptions={
            **FOLDED,
            "recorder": "a vector of scores, whose length is 1, makes one query for all cells",
        },
    )
    for name, (dim, depth, parameters) in MODELS.items()
]
