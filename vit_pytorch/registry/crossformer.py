"""The CrossFormer paper's models at four sizes (Wang et al. 2021, table 1)."""

from vit_pytorch.crossformer import CrossFormer
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

SIZES = {
    "tiny": ({"dim": (64, 128, 256, 512), "depth": (1, 1, 8, 6)}, 27_776_794),
    "small": ({"dim": (96, 192, 384, 768), "depth": (2, 2, 6, 2)}, 30_657_394),
    "base": ({"dim": (96, 192, 384, 768), "depth": (2, 2, 18, 2)}, 51_971_554),
    "large": ({"dim": (128, 256, 512, 1024), "depth": (2, 2, 18, 2)}, 91_971_184),
}
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (48, 64, 64, 96),
    "depth": (2, 2, 1, 1),
    "heads": (2, 4, 2, 4),
    "global_window_size": (4, 2, 1, 1),
    "local_window_size": 4,
    "mlp_ratio": 2,
}

ENTRIES = [
    ModelEntry(
        name=f"crossformer_{size}_patch4_group7_224",
        architecture=CrossFormer,
        config={
            "num_classes": 1000,
            **arguments,
            "global_window_size": (8, 4, 2, 1),
            "local_window_size": 7,
            "image_size": 224,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        exceptions=FOLDED,
    )
    for size, (arguments, parameters) in SIZES.items()
]
