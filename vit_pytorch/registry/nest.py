"""The NesT paper's three models (Zhang et al. 2021, table A1), padded as in PyTorch and as in JAX."""

from vit_pytorch.nest import NesT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {
    "tiny": {"dim": 96, "heads": 3, "num_hierarchies": 3, "block_repeats": (2, 2, 8)},
    "small": {"dim": 96, "heads": 3, "num_hierarchies": 3, "block_repeats": (2, 2, 20)},
    "base": {"dim": 128, "heads": 4, "num_hierarchies": 3, "block_repeats": (2, 2, 20)},
}
PARAMETERS = {"tiny": 17_057_608, "small": 38_351_176, "base": 67_723_368}
TINY = {
    "image_size": 32,
    "dim": 16,
    "heads": 2,
    "block_repeats": (1, 1, 2),
    "num_classes": 7,
}


def _entry(size: str, padding: str) -> ModelEntry:
    name = f"nest_{size}_jx" if padding == "same" else f"nest_{size}"
    return ModelEntry(
        name=name,
        architecture=NesT,
        config={
            "image_size": 224,
            "patch_size": 4,
            **SIZES[size],
            "num_classes": 1000,
            "padding": padding,
        },
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        hub_id=f"timm/{name}.goog_in1k" if padding == "same" else None,
    )


ENTRIES = [_entry(size, padding) for padding in ("symmetric", "same") for size in SIZES]
