"""The CvT paper's models at the resolutions of their published weights (Wu et al. 2021, tables 2 and 3)."""

from vit_pytorch.cvt import CvT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {
    "13": {},
    "21": {"s2_depth": 4, "s3_depth": 16},
    "w24": {
        "s1_emb_dim": 192,
        "s1_heads": 3,
        "s1_depth": 2,
        "s2_emb_dim": 768,
        "s2_heads": 12,
        "s2_depth": 2,
        "s3_emb_dim": 1024,
        "s3_heads": 16,
        "s3_depth": 20,
    },
}
PARAMETERS = {"13": 19_997_480, "21": 31_622_696, "w24": 277_196_392}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875}
TINY = {
    "num_classes": 7,
    "s1_emb_dim": 8,
    "s1_depth": 1,
    "s1_heads": 1,
    "s1_mlp_mult": 2,
    "s2_emb_dim": 16,
    "s2_depth": 1,
    "s2_heads": 2,
    "s2_mlp_mult": 2,
    "s3_emb_dim": 24,
    "s3_depth": 2,
    "s3_heads": 3,
    "s3_mlp_mult": 2,
    "image_size": 64,
}
EXCEPTIONS = {
    "every_parameter_has_a_gradient": "the class token alone is classified, to which the convolution of the "
    "last block's queries does not matter"
}


def _entry(size: str, image_size: int, hub: str) -> ModelEntry:
    return ModelEntry(
        name=f"cvt_{size}" if image_size == 224 else f"cvt_{size}_{image_size}",
        architecture=CvT,
        config={"num_classes": 1000, **SIZES[size], "image_size": image_size},
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg=PREPARE if image_size == 224 else {**PREPARE, "crop_pct": 1.0},
        hub_id=f"microsoft/{hub}",
        exceptions=EXCEPTIONS,
    )


ENTRIES = [
    _entry("13", 224, "cvt-13"),
    _entry("21", 224, "cvt-21"),
    _entry("13", 384, "cvt-13-384"),
    _entry("21", 384, "cvt-21-384"),
    _entry("w24", 384, "cvt-w24-384-22k"),
]
