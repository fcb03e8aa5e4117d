"""The NesT paper's models: three for ImageNet, padded as in PyTorch and as in JAX, and three for CIFAR."""

from vit_pytorch.nest import NesT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {
    "tiny": {"dim": 96, "heads": 3, "num_hierarchies": 3, "block_repeats": (2, 2, 8)},
    "small": {"dim": 96, "heads": 3, "num_hierarchies": 3, "block_repeats": (2, 2, 20)},
    "base": {"dim": 128, "heads": 4, "num_hierarchies": 3, "block_repeats": (2, 2, 20)},
}
# For images of 32 pixels: widths stay the same, and heads share their keys and values.
SMALL_IMAGES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2471, 0.2435, 0.2616)}
PARAMETERS = {
    "tiny": 17_057_608,
    "small": 38_351_176,
    "base": 67_723_368,
    "tiny_s16_32": 6_197_800,
    "small_s16_32": 23_231_080,
    "base_s16_32": 89_811_688,
}
TINY = {"image_size": 32, "dim": 16, "heads": 2, "block_repeats": (1, 1, 2), "num_classes": 7}

EXCEPTIONS = {
    "gradients_per_sample": "Opacus takes convolutions' inputs to have their channels first in memory"
}


def _entry(size: str, padding: str) -> ModelEntry:
    name = f"nest_{size}_jx" if padding == "same" else f"nest_{size}"
    return ModelEntry(
        name=name,
        architecture=NesT,
        config={"image_size": 224, "patch_size": 4, **SIZES[size], "num_classes": 1000, "padding": padding},
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        hub_id=f"timm/{name}.goog_in1k" if padding == "same" else None,
        exceptions=EXCEPTIONS,
    )


def _small_images(size: str) -> ModelEntry:
    dim, heads = SMALL_IMAGES[size]
    return ModelEntry(
        name=f"nest_{size}_s16_32",
        architecture=NesT,
        config={
            "image_size": 32,
            "patch_size": 1,
            "dim": (dim,) * 4,
            "heads": (heads,) * 4,
            "num_hierarchies": 4,
            "block_repeats": 3,
            "num_classes": 1000,
            "multi_query": True,
            "act": "gelu_tanh",
            "padding": "same",
        },
        parameters=PARAMETERS[f"{size}_s16_32"],
        tiny={"dim": (12,) * 4, "heads": (3,) * 4, "block_repeats": (1, 2, 1, 1), "num_classes": 7},
        default_cfg={**CIFAR, "interpolation": "bicubic", "crop_pct": 1.0},
        exceptions=EXCEPTIONS,
    )


ENTRIES = [_entry(size, padding) for padding in ("symmetric", "same") for size in SIZES]
ENTRIES += [_small_images(size) for size in SMALL_IMAGES]
