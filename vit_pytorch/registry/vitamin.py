"""The models of ViTamin (Chen et al. 2024), whose classes are the dimensions shared with texts."""

from vit_pytorch.registry.entry import FOLDED, ModelEntry
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.vitamin import ViTamin

SIZES = {
    "small": {"dim": 384, "depth": 14, "heads": 6, "mlp_dim": 768, "conv_dim": (64, 128)},
    "base": {"dim": 768, "depth": 14, "heads": 12, "mlp_dim": 1536, "conv_dim": (128, 256)},
    "large": {"dim": 1024, "depth": 31, "heads": 16, "mlp_dim": 2048, "conv_dim": (160, 320)},
    "xlarge": {
        "dim": 1152,
        "depth": 32,
        "heads": 16,
        "mlp_dim": 2304,
        "dim_head": 72,
        "conv_dim": (192, 384),
    },
}
# beside a larger encoder of texts
SIZES["large2"] = SIZES["large"]
# dimensions shared with texts, and what the authors call the size
SHARED = {
    "small": (768, "S"),
    "base": (768, "B"),
    "large": (768, "L"),
    "large2": (1024, "L2"),
    "xlarge": (1152, "XL"),
}
# parameters
MODELS = {
    "vitamin_small_224": 22_262_696,
    "vitamin_base_224": 87_901_032,
    **{
        f"vitamin_{size}_{pixels}": parameters
        for size in ("large", "large2")
        for pixels, parameters in (
            (224, 333_556_616),
            (256, 333_618_056),
            (336, 333_807_496),
            (384, 333_945_736),
        )
    },
    **{f"vitamin_xlarge_{pixels}": 435_879_976 for pixels in (256, 336, 384)},
}
# A map of 4 x 4 cells.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "dim_head": 12,
    "mlp_dim": 48,
    "conv_dim": (8, 16),
    "conv_depth": (1, 2),
    "expansion": 2.0,
}


def _entry(name: str) -> ModelEntry:
    _, size, pixels = name.split("_")
    classes, theirs = SHARED[size]
    repository = f"jienengchen/ViTamin-{theirs}"
    # Of the small ones, those whose image encoder was tuned to a trained encoder of texts come first.
    releases = (
        {"datacomp1b_clip_ltt": f"{repository}-LTT", "datacomp1b_clip": repository}
        if size in ("small", "base")
        else {"datacomp1b_clip": f"{repository}-{pixels}px"}
    )
    return ModelEntry(
        name=name,
        architecture=ViTamin,
        config={
            "image_size": int(pixels),
            "num_classes": classes,
            **SIZES[size],
            "positions": "none" if size == "xlarge" else "learned",
        },
        parameters=MODELS[name],
        tiny=TINY,
        default_cfg={**CLIP, "interpolation": "bicubic", "crop_pct": 0.9 if pixels == "224" else 1.0},
        hub_id=next(iter(releases.values())),
        releases=releases,
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
