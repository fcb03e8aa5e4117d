"""DaViT's models (Ding et al. 2022, table 1), and the image encoders of Florence-2 (arXiv:2311.06242)."""

from typing import Any

from vit_pytorch.davit import DaViT
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

FLORENCE: dict[str, Any] = {
    "image_size": 768,
    "num_classes": 0,
    "window_size": 12,
    "down_kernel_size": 3,
    "channel_scale": "tokens",
}
# name: channels of the first stage, pairs of blocks, parameters, other arguments, published weights
MODELS: dict[str, tuple[int, tuple[int, ...], int, dict[str, Any], str | None]] = {
    "davit_tiny": (96, (1, 1, 3, 1), 28_360_168, {}, "timm/davit_tiny.msft_in1k"),
    "davit_small": (96, (1, 1, 9, 1), 49_745_896, {}, "timm/davit_small.msft_in1k"),
    "davit_base": (128, (1, 1, 9, 1), 87_954_408, {}, "timm/davit_base.msft_in1k"),
    "davit_large": (192, (1, 1, 9, 1), 196_811_752, {}, None),
    "davit_huge": (256, (1, 1, 9, 1), 348_922_856, {}, None),
    "davit_giant": (384, (1, 1, 12, 3), 1_406_470_120, {}, None),
    "davit_base_fl": (128, (1, 1, 9, 1), 91_395_048, FLORENCE, "microsoft/Florence-2-base"),
    "davit_huge_fl": (256, (1, 1, 9, 1), 362_685_416, FLORENCE, "microsoft/Florence-2-large"),
}
# Maps of 12, 6 and 3 cells: windows that divide the map, that do not, and one that covers it.
TINY = {
    "image_size": 48,
    "num_classes": 7,
    "dim": 16,
    "depth": (1, 1, 1),
    "heads": (2, 2, 4),
    "window_size": 4,
    "mlp_ratio": 2,
}


def _entry(name: str) -> ModelEntry:
    dim, depth, parameters, arguments, hub_id = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=DaViT,
        config={"image_size": 224, "num_classes": 1000, "dim": dim, "depth": depth, **arguments},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.95},
        hub_id=hub_id,
        releases={"msft_florence2": hub_id} if hub_id and hub_id.startswith("microsoft/") else {},
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
