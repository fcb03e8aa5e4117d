"""ConvMixer's models (Trockman and Kolter 2022, table 1), as timm names them."""

from typing import Any

from vit_pytorch.conv_mixer import ConvMixer
from vit_pytorch.registry.entry import IMAGENET, NO_ATTENTION, ModelEntry

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "convmixer_1536_20": ({"dim": 1536, "depth": 20, "kernel_size": 9, "patch_size": 7}, 51_625_960),
    "convmixer_768_32": (
        {"dim": 768, "depth": 32, "kernel_size": 7, "patch_size": 7, "act": "relu"},
        21_110_248,
    ),
    "convmixer_1024_20_ks9_p14": ({"dim": 1024, "depth": 20, "kernel_size": 9, "patch_size": 14}, 24_383_464),
}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.96}
TINY = {"image_size": 32, "patch_size": 4, "num_classes": 7, "dim": 24, "depth": 2, "kernel_size": 3}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=ConvMixer,
        config={"image_size": 224, "num_classes": 1000, **config},
        parameters=parameters,
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.in1k",
        exceptions=NO_ATTENTION,
    )
    for name, (config, parameters) in MODELS.items()
]
