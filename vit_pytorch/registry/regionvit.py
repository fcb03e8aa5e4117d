"""The RegionViT paper's models at four sizes, and the two that serve detection with larger regions."""

from vit_pytorch.regionvit import RegionViT
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

SIZES = {
    "tiny": {"dim": (64, 128, 256, 512), "depth": (2, 2, 8, 2), "tokenize_local_3_conv": True},
    "small": {"dim": (96, 192, 384, 768), "depth": (2, 2, 8, 2), "tokenize_local_3_conv": True},
    "medium": {"dim": (96, 192, 384, 768), "depth": (2, 2, 14, 2), "tokenize_local_3_conv": False},
    "base": {"dim": (128, 256, 512, 1024), "depth": (2, 2, 14, 2), "tokenize_local_3_conv": False},
}
# size, side of a region, positions by convolution
PARAMETERS = {
    ("tiny", 7, False): 13_842_676,
    ("small", 7, False): 30_586_618,
    ("medium", 7, False): 41_215_906,
    ("base", 7, False): 72_747_232,
    ("small", 14, False): 31_354_714,
    ("small", 14, True): 31_367_674,
    ("base", 14, False): 73_825_120,
    ("base", 14, True): 73_842_400,
}
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 32, 32, 64),
    "depth": (1, 2, 1, 1),
    "heads": (2, 2, 4, 4),
    "window_size": 2,
    "mlp_ratio": 2,
}
EXCEPTIONS = {
    "every_parameter_has_a_gradient": "the last block's relative table moves local cells alone, of which the "
    "classifier reads none"
}


def _entry(size: str, window: int, peg: bool) -> ModelEntry:
    return ModelEntry(
        name=f"regionvit_{size}{'' if window == 7 else f'_w{window}'}{'_peg' if peg else ''}_224",
        architecture=RegionViT,
        config={**SIZES[size], "window_size": window, "num_classes": 1000, "use_peg": peg, "image_size": 224},
        parameters=PARAMETERS[size, window, peg],
        tiny={**TINY, "use_peg": peg, "tokenize_local_3_conv": peg},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        exceptions={**EXCEPTIONS, **FOLDED},
    )


ENTRIES = [_entry(*key) for key in PARAMETERS]
