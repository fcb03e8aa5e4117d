"""The vision towers of Gemma 4 (Gemma Team 2026, arXiv:2607.02770)."""

from typing import Any

from vit_pytorch.gemma4_vit import Gemma4ViT
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import TINY

# name: parameters, timm's release, sizes
MODELS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "gemma4_vit_167m": (
        168_133_608,
        "gemma4_e4b_it",
        {"dim": 768, "depth": 16, "heads": 12, "mlp_dim": 3072, "clipped": True},
    ),
    "gemma4_vit_570m": (
        570_701_080,
        "gemma4_31b_it",
        {"dim": 1152, "depth": 27, "heads": 16, "dim_head": 72, "mlp_dim": 4304},
    ),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, shape = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=Gemma4ViT,
        config={"image_size": 768, "patch_size": 16, "num_classes": 0, **shape},
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, "positions": 16},
        default_cfg={
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        hub_id=f"timm/{name}.{tag}",
        exceptions={"gradients_per_sample": "Opacus calls positions without the grid, which has any size"},
    )


ENTRIES = [_entry(name) for name in MODELS]
