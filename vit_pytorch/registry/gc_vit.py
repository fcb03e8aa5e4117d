"""GC ViT's models (Hatamizadeh et al. 2022)."""

from typing import Any

from vit_pytorch.gc_vit import GCViT
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

WIDE: dict[str, Any] = {"mlp_ratio": 2, "layer_scale": 1e-5}
# name: channels of the first stage, blocks, parameters, other arguments
MODELS: dict[str, tuple[int, tuple[int, ...], int, dict[str, Any]]] = {
    "gcvit_xxtiny": (64, (2, 2, 6, 2), 11_995_428, {}),
    "gcvit_xtiny": (64, (3, 4, 6, 5), 19_981_294, {}),
    "gcvit_tiny": (64, (3, 4, 19, 5), 28_221_974, {}),
    "gcvit_small": (96, (3, 4, 19, 5), 51_092_173, WIDE),
    "gcvit_base": (128, (3, 4, 19, 5), 90_320_836, WIDE),
}
# Maps of 16, 8 and 4 cells, windows of 4, 4 and 4: two halvings lead to the first one's queries.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 16,
    "depth": (2, 2, 2),
    "heads": (2, 2, 4),
    "num_windows": (4, 2, 1),
    "mlp_ratio": 2,
}


def _entry(name: str) -> ModelEntry:
    dim, depth, parameters, arguments = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=GCViT,
        config={"image_size": 224, "num_classes": 1000, "dim": dim, "depth": depth, **arguments},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        exceptions={**FOLDED, "smaller_inputs": "the map of the global queries is as large as a window"},
    )


ENTRIES = [_entry(name) for name in MODELS]
