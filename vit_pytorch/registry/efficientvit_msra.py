"""EfficientViT's models (Liu et al. 2023, table 1)."""

from vit_pytorch.efficientvit_msra import EfficientViT
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

FEW = (1, 2, 3)
EQUAL, FALLING = (5, 5, 5, 5), (7, 5, 3, 3)
# name: channels, blocks and heads of each stage, kernels of each head, parameters
MODELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "efficientvit_m0": ((64, 128, 192), FEW, (4, 4, 4), EQUAL, 2_349_436),
    "efficientvit_m1": ((128, 144, 192), FEW, (2, 3, 3), FALLING, 2_980_560),
    "efficientvit_m2": ((128, 192, 224), FEW, (4, 3, 2), FALLING, 4_187_554),
    "efficientvit_m3": ((128, 240, 320), FEW, (4, 3, 4), EQUAL, 6_900_722),
    "efficientvit_m4": ((128, 256, 384), FEW, (4, 4, 4), FALLING, 8_804_228),
    "efficientvit_m5": ((192, 288, 384), (1, 3, 4), (3, 3, 4), FALLING, 12_473_772),
}
# Maps of 8, 4 and 2 cells: windows that do not divide the map, and one that covers it.
TINY = {
    "image_size": 128,
    "num_classes": 7,
    "dim": (16, 24, 32),
    "depth": (1, 1, 2),
    "heads": (2, 2, 2),
    "dim_key": 4,
    "kernel_sizes": (3, 1),
    "window_size": 3,
}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=EfficientViT,
        config={
            "image_size": 224,
            "num_classes": 1000,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "kernel_sizes": kernels,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        hub_id=f"timm/{name}.r224_in1k",
        exceptions=FOLDED,
    )
    for name, (dim, depth, heads, kernels, parameters) in MODELS.items()
]
