"""Hiera's models (Ryali et al. 2023, table 1), and timm's with absolute window positions."""

from typing import Any

from vit_pytorch.hiera import Hiera
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

SMALL: dict[str, Any] = {"depth": (1, 2, 11, 2)}
ABSWIN: dict[str, Any] = {"layer_scale": 1e-5}
# name: parameters, arguments
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "hiera_tiny_224": (27_910_216, {"depth": (1, 2, 7, 2)}),
    "hiera_small_224": (35_008_072, SMALL),
    "hiera_base_224": (51_524_968, {}),
    "hiera_base_plus_224": (69_896_616, {"dim": 112, "heads": 2}),
    "hiera_large_224": (213_739_912, {"dim": 144, "heads": 2, "depth": (2, 6, 36, 4)}),
    "hiera_huge_224": (672_779_752, {"dim": 256, "heads": 4, "depth": (2, 6, 36, 4)}),
    "hiera_small_abswin_256": (
        34_361_800,
        {**ABSWIN, **SMALL, "position_grid": 16, "project_shortcut": False},
    ),
    "hiera_base_abswin_256": (51_267_304, {**ABSWIN, "position_grid": 14}),
}
# Maps of 16, 8, 4 and 2 cells.
TINY = {"image_size": 64, "num_classes": 7, "dim": 16, "depth": (1, 2, 2, 1), "heads": 1, "mlp_ratio": 2}


def _entry(name: str) -> ModelEntry:
    parameters, arguments = MODELS[name]
    size = int(name[-3:])
    tags = {224: "mae_in1k_ft_in1k", 256: "sbb2_e200_in12k_ft_in1k"}
    return ModelEntry(
        name=name,
        architecture=Hiera,
        config={"num_classes": 1000, "image_size": size, **arguments},
        parameters=parameters,
        tiny={**TINY, **({"position_grid": 3, "layer_scale": None} if size == 256 else {})},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9 if size == 224 else 0.95},
        hub_id=None if name == "hiera_base_abswin_256" else f"timm/{name}.{tags[size]}",
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
