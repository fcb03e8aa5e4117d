"""The image encoders of SAM 2 (Ravi et al. 2024, appendix D.1), and timm's for classes."""

from typing import Any

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.sam2_hiera import SAM2Hiera

SMALL: dict[str, Any] = {"depth": (1, 2, 11, 2), "global_layers": (7, 10, 13)}
POWERS = (8, 4, 16, 8)
# name: parameters with 1000 classes, arguments
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "sam2_hiera_tiny": (27_620_008, {"depth": (1, 2, 7, 2), "global_layers": (5, 7, 9)}),
    "sam2_hiera_small": (34_717_864, SMALL),
    "sam2_hiera_base_plus": (69_574_504, {"dim": 112, "heads": 2, "position_grid": 14}),
    "sam2_hiera_large": (
        213_304_600,
        {
            "image_size": 1024,
            "dim": 144,
            "heads": 2,
            "depth": (2, 6, 36, 4),
            "global_layers": (23, 33, 43),
            "window_size": POWERS,
        },
    ),
    "hieradet_small": (
        34_730_344,
        {"image_size": 256, "num_classes": 1000, "window_size": POWERS, "layer_scale": 1e-5, **SMALL},
    ),
}
# Maps of 8, 4 and 2 cells, the last padded to a window of 3.
TINY = {
    "image_size": 32,
    "num_classes": 7,
    "dim": 16,
    "depth": (1, 1, 2),
    "heads": 1,
    "window_size": (4, 2, 3),
    "global_layers": (1,),
    "position_grid": 3,
    "mlp_ratio": 2,
    "layer_scale": None,
}


def _entry(name: str) -> ModelEntry:
    parameters, arguments = MODELS[name]
    config: dict[str, Any] = {"image_size": 896, "num_classes": 0, **arguments}
    return ModelEntry(
        name=name,
        architecture=SAM2Hiera,
        config=config,
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0},
        hub_id=f"timm/{name}.fb_r{config['image_size']}" if name.startswith("sam2") else None,
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
