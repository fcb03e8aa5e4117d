"""EVA-02 (Y. Fang et al. 2023, arXiv:2303.11331), and the image towers of EVA-CLIP (arXiv:2303.15389)."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.plain import NORMED_MEAN
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

ROTARY: dict[str, Any] = {
    "positions": [
        {"kind": "learned"},
        {"kind": "rope_scaled", "reference": (16, 16), "first_axis_first": True},
    ],
    "act": "swiglu",
    "qkv_bias": "qv",
}
WITH_SUB_NORM = {**ROTARY, "norm": {"kind": "layer", "sub": "feedforward"}}
WITH_SUB_NORMS = {**ROTARY, "norm": {"kind": "layer", "sub": "both"}}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {**SIZES["tiny"], "mlp_dim": 512, **ROTARY},
    "small": {**SIZES["small"], "mlp_dim": 1024, **ROTARY},
    "base": {**SIZES["base"], "mlp_dim": 2048, **WITH_SUB_NORM},
    "large": {**SIZES["large"], "mlp_dim": 2730, **WITH_SUB_NORM},
    "enormous": {
        "dim": 1792,
        "depth": 64,
        "heads": 16,
        "dim_head": 112,
        "mlp_dim": 15360,
        "qkv_bias": "qv",
        "norm": {"kind": "layer", "post": True},
    },
}
# name: parameters, timm's release, number of classes
MODELS = {
    "eva02_tiny_patch14_224": (5_695_144, "mim_in22k", 0),
    "eva02_small_patch14_224": (22_006_120, "mim_in22k", 0),
    "eva02_base_patch14_224": (86_527_720, "mim_in22k", 0),
    "eva02_large_patch14_224": (304_293_800, "mim_in22k", 0),
    "eva02_tiny_patch14_336": (5_756_584, "mim_in22k_ft_in1k", 1000),
    "eva02_small_patch14_336": (22_129_000, "mim_in22k_ft_in1k", 1000),
    "eva02_base_patch14_448": (87_117_544, "mim_in22k_ft_in22k_in1k", 1000),
    "eva02_large_patch14_448": (305_080_232, "mim_in22k_ft_in22k_in1k", 1000),
    # projections in place of classes
    "eva02_base_patch16_clip_224": (86_638_312, "merged2b", 512),
    "eva02_large_patch14_clip_224": (304_342_952, "merged2b", 768),
    "eva02_large_patch14_clip_336": (304_670_632, "merged2b", 768),
    "eva02_enormous_patch14_clip_224": (4_350_513_896, "laion2b", 1024),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, classes = MODELS[name]
    _, size, patch, *kinds, image_size = name.split("_")
    tower = WITH_SUB_NORMS if size != "enormous" else {}
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": int(image_size),
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": classes,
            **SHAPES[size],
            **(tower if "clip" in kinds else NORMED_MEAN),
        },
        parameters=parameters,
        # One of each kind of block, with all norms.
        tiny={**TINY, "num_classes": 7, **({} if size == "enormous" else WITH_SUB_NORMS)},
        default_cfg={
            **CLIP,
            "interpolation": "bicubic",
            "crop_pct": 0.9 if image_size == "224" else 1.0,
            "crop_mode": "squash" if image_size == "448" else "center",
        },
        hub_id=f"timm/{name}.{tag}",
    )


ENTRIES = [_entry(name) for name in MODELS]
