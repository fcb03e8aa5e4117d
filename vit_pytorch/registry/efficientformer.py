"""EfficientFormer's models, distilled as published (Li et al. 2022, table 1)."""

from vit_pytorch.efficientformer import EfficientFormer
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

# name: channels and blocks of each stage, blocks with attention, parameters
MODELS = {
    "efficientformer_l1": ((48, 96, 224, 448), (3, 2, 6, 4), 1, 12_289_928),
    "efficientformer_l3": ((64, 128, 320, 512), (4, 4, 12, 6), 4, 31_406_000),
    "efficientformer_l7": ((96, 192, 384, 768), (6, 6, 18, 8), 8, 82_229_328),
}
# Maps of 16, 8 and 4 cells.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 24),
    "depth": (1, 1, 2),
    "attention_depth": 1,
    "heads": 2,
    "dim_key": 8,
    "mlp_ratio": 2.0,
}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=EfficientFormer,
        config={
            "image_size": 224,
            "num_classes": 1000,
            "dim": dim,
            "depth": depth,
            "attention_depth": attention_depth,
            "distilled": True,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.95},
        hub_id=f"timm/{name}.snap_dist_in1k",
        exceptions=FOLDED,
    )
    for name, (dim, depth, attention_depth, parameters) in MODELS.items()
]
