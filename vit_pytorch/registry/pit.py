"""The PiT paper's models at four sizes, each plain and distilled (Heo et al. 2021, table 1)."""

from vit_pytorch.pit import PiT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {
    "ti": {"dim": 64, "depth": (2, 6, 4), "heads": 2, "mlp_dim": 256},
    "xs": {"dim": 96, "depth": (2, 6, 4), "heads": 2, "mlp_dim": 384},
    "s": {"dim": 144, "depth": (2, 6, 4), "heads": 3, "mlp_dim": 576},
    "b": {"dim": 256, "depth": (3, 6, 4), "heads": 4, "mlp_dim": 1024},
}
PARAMETERS = {
    ("ti", False): 4_847_272,
    ("xs", False): 10_618_888,
    ("s", False): 23_461_912,
    ("b", False): 73_764_840,
    ("ti", True): 5_104_336,
    ("xs", True): 11_003_984,
    ("s", True): 24_039_056,
    ("b", True): 74_790_096,
}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9}
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "stride": 4,
    "num_classes": 7,
    "dim": 16,
    "depth": (1, 2, 1),
    "heads": 2,
    "mlp_dim": 32,
}
OVERLAP = "patches overlap without padding, so the map has one cell less than pixels by stride"
EXCEPTIONS = {"feature_info": OVERLAP, "grad_cam": OVERLAP}
PAIR = {"features_then_head": "the embedding is the mean of two tokens with a classifier each, as in timm"}


def _entry(size: str, distilled: bool) -> ModelEntry:
    name = f"pit_{size}_distilled_224" if distilled else f"pit_{size}_224"
    return ModelEntry(
        name=name,
        architecture=PiT,
        config={
            "image_size": 224,
            "patch_size": 14 if size == "b" else 16,
            "stride": 7 if size == "b" else 8,
            "num_classes": 1000,
            **SIZES[size],
            "distilled": distilled,
        },
        parameters=PARAMETERS[size, distilled],
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.in1k",
        exceptions={**EXCEPTIONS, **(PAIR if distilled else {})},
    )


ENTRIES = [_entry(size, distilled) for distilled in (False, True) for size in SIZES]
