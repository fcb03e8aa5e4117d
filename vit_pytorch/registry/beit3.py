"""BEiT-3's vision encoders (W. Wang et al. 2022, arXiv:2208.10442): norms inside both branches (Sub-LN)."""

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.plain import NORMED_MEAN
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

# name: parameters, timm's release
MODELS = {
    "beit3_base_patch16_224": (86_659_816, "in22k_ft_in1k"),
    "beit3_large_patch16_224": (304_572_392, "in22k_ft_in1k"),
    "beit3_giant_patch14_224": (1_013_215_592, None),
    "beit3_giant_patch14_336": (1_013_666_152, None),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag = MODELS[name]
    _, size, patch, image_size = name.split("_")
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": int(image_size),
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": 1000,
            **SIZES[size],
            **NORMED_MEAN,
            "norm": {"kind": "layer", "sub": "both"},
            "norm_eps": 1e-5,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
    )


ENTRIES = [_entry(name) for name in MODELS]
