"""The MaxViT paper's models (Tu et al. 2022, table 1) at 224, 384 and 512 pixels, and torchvision's."""

from vit_pytorch.max_vit import MaxViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {
    "tiny": {"dim": 64, "depth": (2, 2, 5, 2), "dim_conv_stem": 64},
    "small": {"dim": 96, "depth": (2, 2, 5, 2), "dim_conv_stem": 64},
    "base": {"dim": 96, "depth": (2, 6, 14, 2), "dim_conv_stem": 64},
    "large": {"dim": 128, "depth": (2, 6, 14, 2), "dim_conv_stem": 128},
    "xlarge": {"dim": 192, "depth": (2, 6, 14, 2), "dim_conv_stem": 192},
}
PARAMETERS = {
    ("tiny", 224): 30_916_528,
    ("tiny", 384): 30_977_008,
    ("tiny", 512): 31_049_584,
    ("small", 224): 68_927_956,
    ("small", 384): 69_018_676,
    ("small", 512): 69_127_540,
    ("base", 224): 119_467_708,
    ("base", 384): 119_653_468,
    ("base", 512): 119_876_380,
    ("large", 224): 211_785_560,
    ("large", 384): 212_033_240,
    ("large", 512): 212_330_456,
    ("xlarge", 224): 474_951_952,
    ("xlarge", 384): 475_323_472,
    ("xlarge", 512): 475_769_296,
}
TORCHVISION = {
    "act": "gelu",
    "padding": "symmetric",
    "project_shortcuts": True,
    "scale_by": "dim",
    "stem_bias": False,
    "head_bias": False,
}
TINY = {
    "image_size": 128,
    "num_classes": 7,
    "dim": 8,
    "depth": (1, 2),
    "dim_conv_stem": 8,
    "dim_head": 4,
    "window_size": 4,
}


def _entry(size: str, pixels: int) -> ModelEntry:
    name = f"maxvit_{size}_tf_{pixels}"
    weights = "in1k" if size in ("tiny", "small") else "in21k_ft_in1k"
    if pixels == 224:
        weights = "in21k" if size == "xlarge" else "in1k"
    return ModelEntry(
        name=name,
        architecture=MaxViT,
        config={"image_size": pixels, "num_classes": 21843 if weights == "in21k" else 1000, **SIZES[size]},
        parameters=PARAMETERS[size, pixels],
        tiny=TINY,
        default_cfg={
            **(IMAGENET if weights == "in1k" and pixels == 224 else {}),
            "interpolation": "bicubic",
            "crop_pct": 0.95 if pixels == 224 else 1.0,
        },
        hub_id=f"timm/{name}.{weights}",
    )


ENTRIES = [
    *(_entry(size, pixels) for size in SIZES for pixels in (224, 384, 512)),
    ModelEntry(
        name="maxvit_t",
        architecture=MaxViT,
        config={"image_size": 224, "num_classes": 1000, **SIZES["tiny"], **TORCHVISION},
        parameters=30_919_624,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0},
    ),
]
