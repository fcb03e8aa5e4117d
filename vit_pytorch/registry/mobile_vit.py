"""The MobileViT paper's models at three sizes (Mehta and Rastegari 2021, appendix A, table 4)."""

from typing import Any

from vit_pytorch.mobile_vit import MobileViT
from vit_pytorch.registry.entry import ModelEntry

SIZES: dict[str, dict[str, Any]] = {
    "xxs": {"dims": (64, 80, 96), "widths": (16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 320), "expansion": 2.0},
    "xs": {"dims": (96, 120, 144), "widths": (16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384)},
    "s": {"dims": (144, 192, 240), "widths": (16, 32, 64, 64, 96, 96, 128, 128, 160, 160, 640)},
}
PARAMETERS = {"xxs": 1_272_024, "xs": 2_317_848, "s": 5_578_632}
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dims": (8, 12, 16),
    "widths": (8, 8, 8, 8, 12, 12, 16, 16, 20, 20, 24),
    "depths": (1, 1, 2),
}
# The authors train on colours between 0 and 1 as they are.
PREPARE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bicubic", "crop_pct": 0.9}

ENTRIES = [
    ModelEntry(
        name=f"mobilevit_{size}",
        architecture=MobileViT,
        config={"image_size": 256, **SIZES[size], "num_classes": 1000},
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/mobilevit_{size}.cvnets_in1k",
    )
    for size in SIZES
]
