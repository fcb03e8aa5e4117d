"""The image encoders of Segment Anything (Kirillov et al. 2023, appendix A), and timm's for classes."""

from typing import Any

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.registry.vit import SIZES
from vit_pytorch.sam_vit import SAMViT

# name: parameters with 1000 classes, arguments
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "samvit_base_patch16": (89_927_912, {**SIZES["base"], "global_layers": (2, 5, 8, 11)}),
    "samvit_large_patch16": (308_535_272, {**SIZES["large"], "global_layers": (5, 11, 17, 23)}),
    "samvit_huge_patch16": (637_283_048, {**SIZES["huge"], "global_layers": (7, 15, 23, 31)}),
    "samvit_base_patch16_224": (
        86_457_064,
        {
            **SIZES["base"],
            "global_layers": (2, 5, 8, 11),
            "image_size": 224,
            "num_classes": 1000,
            "positions": "none",
            "neck_dim": None,
        },
    ),
}
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "dim_head": 12,
    "mlp_dim": 48,
    "window_size": 3,
    "global_layers": (1,),
}
AS_THE_HEAD = {"group_matcher": "the neck learns at the head's rate, as in timm"}


def _entry(name: str) -> ModelEntry:
    parameters, arguments = MODELS[name]
    encodes = "224" not in name
    return ModelEntry(
        name=name,
        architecture=SAMViT,
        # timm's epsilon, where the authors' is 1e-6
        config={"image_size": 1024, "patch_size": 16, "num_classes": 0, "norm_eps": 1e-5, **arguments},
        parameters=parameters,
        tiny={**TINY, **({"neck_dim": 16} if encodes else {})},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0 if encodes else 0.9},
        hub_id=f"timm/{name}.sa1b" if encodes else None,
        exceptions={**FOLDED, **AS_THE_HEAD},
    )


ENTRIES = [_entry(name) for name in MODELS]
