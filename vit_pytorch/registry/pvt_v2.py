"""PVT v2's models (Wang et al. 2021, table 1)."""

from typing import Any

from vit_pytorch.pvt_v2 import PVTv2
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
# name: channels and blocks of each stage, other arguments, parameters
MODELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], int]] = {
    "pvt_v2_b0": (NARROW, (2, 2, 2, 2), {}, 3_666_760),
    "pvt_v2_b1": (WIDE, (2, 2, 2, 2), {}, 14_009_000),
    "pvt_v2_b2": (WIDE, (3, 4, 6, 3), {}, 25_362_856),
    "pvt_v2_b3": (WIDE, (3, 4, 18, 3), {}, 45_238_696),
    "pvt_v2_b4": (WIDE, (3, 8, 27, 3), {}, 62_556_072),
    "pvt_v2_b5": (WIDE, (3, 6, 40, 3), {"mlp_ratio": (4, 4, 4, 4)}, 81_956_008),
    "pvt_v2_b2_li": (WIDE, (3, 4, 6, 3), {"reduction": None}, 22_553_512),
}
# Maps of 16, 8 and 4 cells.
TINY: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 24),
    "depth": (1, 1, 2),
    "heads": (1, 2, 3),
    "mlp_ratio": 2,
}


def _entry(name: str) -> ModelEntry:
    dim, depth, arguments, parameters = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=PVTv2,
        config={"image_size": 224, "num_classes": 1000, "dim": dim, "depth": depth, **arguments},
        parameters=parameters,
        tiny={**TINY, "reduction": arguments.get("reduction", (4, 2, 1))},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        hub_id=f"timm/{name}.in1k",
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
