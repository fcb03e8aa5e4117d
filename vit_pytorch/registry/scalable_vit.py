"""The four models of ScalableViT's authors (Yang et al. 2022)."""

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.scalable_vit import ScalableViT

# The paper gives the width of queries and keys as a factor on the width of a head, which is 32.
MODELS = {
    "small": {"dim": 64, "heads": (2, 4, 8, 16), "depth": (2, 2, 20, 2), "ssa_dim_key": (40, 40, 40, 32)},
    "small_0": {"dim": 64, "heads": (2, 4, 8, 16), "depth": (2, 2, 20, 2), "ssa_dim_key": (40, 40, 40, 40)},
    "base": {"dim": 96, "heads": (3, 6, 12, 24), "depth": (2, 2, 14, 6), "ssa_dim_key": (64, 40, 40, 32)},
    "large": {"dim": 128, "heads": (4, 8, 16, 32), "depth": (2, 6, 12, 4), "ssa_dim_key": (8, 16, 32, 32)},
}
PARAMETERS = {"small": 32_000_472, "small_0": 26_307_032, "base": 81_881_624, "large": 109_288_840}
TINY = {
    "num_classes": 7,
    "dim": 8,
    "heads": (1, 2, 4, 4),
    "depth": (2, 1, 2, 2),
    "ssa_dim_key": (10, 5, 5, 20),
    "window_size": (7, 4, 3, 7),
    "image_size": 64,
    "representation_size": 24,
}


def _entry(size: str) -> ModelEntry:
    hidden = {"representation_size": None} if size == "small_0" else {}
    return ModelEntry(
        name=f"scalable_vit_{size}",
        architecture=ScalableViT,
        config={
            "num_classes": 1000,
            **MODELS[size],
            "reduction_factor": (8, 4, 2, 1),
            "window_size": 7,
            "image_size": 224,
            **hidden,
        },
        parameters=PARAMETERS[size],
        tiny={**TINY, **hidden},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        exceptions=FOLDED,
    )


ENTRIES = [_entry(size) for size in MODELS]
