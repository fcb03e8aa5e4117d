"""Vision towers of CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343, arXiv:2502.14786)."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# name: parameters, timm's release, part of the image that evaluation keeps
CLIP_MODELS = {
    "vit_base_patch32_clip_224": (88_225_000, "laion2b_ft_in12k_in1k", 0.9),
    "vit_base_patch32_clip_384": (88_297_960, "laion2b_ft_in12k_in1k", 1.0),
    "vit_base_patch32_clip_448": (88_337_896, "laion2b_ft_in12k_in1k", 1.0),
    "vit_base_patch16_clip_224": (86_568_424, "laion2b_ft_in12k_in1k", 0.95),
    "vit_base_patch16_clip_384": (86_860_264, "laion2b_ft_in12k_in1k", 1.0),
    "vit_large_patch14_clip_224": (304_204_776, "laion2b_ft_in12k_in1k", 1.0),
    "vit_large_patch14_clip_336": (304_532_456, "laion2b_ft_in12k_in1k", 1.0),
    "vit_base_patch32_clip_quickgelu_224": (88_225_000, "openai", 0.9),
    "vit_base_patch16_clip_quickgelu_224": (86_568_424, "openai", 0.9),
    "vit_large_patch14_clip_quickgelu_224": (304_204_776, "openai", 1.0),
    "vit_large_patch14_clip_quickgelu_336": (304_532_456, "openai", 1.0),
}
SIGLIP_MODELS = {
    "vit_base_patch32_siglip_256": 95_321_320,
    "vit_base_patch16_siglip_224": 93_653_224,
    "vit_base_patch16_siglip_256": 93_699_304,
    "vit_base_patch16_siglip_384": 93_945_064,
    "vit_base_patch16_siglip_512": 94_289_128,
    "vit_large_patch16_siglip_256": 316_981_224,
    "vit_large_patch16_siglip_384": 317_308_904,
    "vit_large_patch16_siglip_512": 317_767_656,
}
# Those released with the second version alone have the other form of GELU.
TANH = ("vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512")
LAION_LARGE = ("vit_large_patch14_clip_224", "vit_large_patch14_clip_336")


def _entry(name: str, parameters: int, **rest: Any) -> ModelEntry:
    _, size, patch, *_, image_size = name.split("_")
    config = {
        "image_size": int(image_size),
        "patch_size": int(patch.removeprefix("patch")),
        "num_classes": 1000 if "_clip_" in name else 0,
        **SIZES[size],
    }
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={**config, **rest.pop("config")},
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        **rest,
    )


def _clip(name: str, parameters: int, tag: str, crop_pct: float) -> ModelEntry:
    act = "quickgelu" if "quickgelu" in name else "gelu"
    colours = HALF if name in LAION_LARGE else CLIP
    return _entry(
        name,
        parameters,
        config={"act": act, "norm_eps": 1e-5, "stem": {"kind": "linear", "pre_norm": True}},
        default_cfg={**colours, "interpolation": "bicubic", "crop_pct": crop_pct},
        # The weights are one release, for either activation.
        hub_id=f"timm/{name.replace('quickgelu_', '')}.{tag}",
    )


def _siglip(name: str, parameters: int) -> ModelEntry:
    act = "gelu_tanh" if name in TANH else "gelu"
    return _entry(
        name,
        parameters,
        config={"pool": "map", "act": act},
        default_cfg={**HALF, "interpolation": "bicubic", "crop_pct": 0.9},
        hub_id=f"timm/{name}.v2_webli",
    )


ENTRIES = [
    *(_clip(name, *rest) for name, rest in CLIP_MODELS.items()),
    *(_siglip(name, parameters) for name, parameters in SIGLIP_MODELS.items()),
]
