"""SHViT's models (Yun and Ro 2024, table 2)."""

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.shvit import SHViT

# name: channels, blocks and attending channels of each stage, parameters
MODELS = {
    "shvit_s1": ((128, 224, 320), (2, 4, 5), (0, 48, 68), 6_330_808),
    "shvit_s2": ((128, 308, 448), (2, 4, 5), (0, 66, 96), 11_483_072),
    "shvit_s3": ((192, 352, 448), (3, 5, 5), (0, 75, 96), 14_245_273),
    "shvit_s4": ((224, 336, 448), (4, 7, 6), (0, 72, 96), 16_588_484),
}
# Maps of 4 and 2 cells.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16),
    "depth": (1, 1),
    "attending_dim": (0, 6),
    "dim_key": 4,
}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=SHViT,
        config={
            "image_size": 256 if name == "shvit_s4" else 224,
            "num_classes": 1000,
            "dim": dim,
            "depth": depth,
            "attending_dim": attending_dim,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        hub_id=f"timm/{name}.in1k",
        exceptions=FOLDED,
    )
    for name, (dim, depth, attending_dim, parameters) in MODELS.items()
]
