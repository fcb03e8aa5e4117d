"""The paper's sizes: patch x frames of a tubelet, 32 frames; without a suffix model 1, joint attention.

`_fe` is model 2, the factorised encoder, as the authors configure it: 4 blocks over time in size B, 24 in L;
`_fsa` model 3, factorised self-attention; `_fdp` model 4, factorised dot-product attention, both of size B.
"""

from typing import Any

from vit_pytorch.registry.entry import NO_BATCH, ModelEntry
from vit_pytorch.registry.vit import SIZES
from vit_pytorch.registry.vit_3d import TINY
from vit_pytorch.vivit import ViViT

VARIANTS = {
    "": "joint",
    "_fe": "factorized_encoder",
    "_fsa": "factorized_self_attention",
    "_fdp": "factorized_dot_product",
}
PARAMETERS = {
    "vivit_b_16x2": 89_415_400,
    "vivit_b_16x2_fe": 115_524_328,
    "vivit_b_16x2_fsa": 117_780_712,
    "vivit_b_16x2_fdp": 89_413_864,
    "vivit_l_16x2": 308_123_624,
    "vivit_l_16x2_fe": 607_442_920,
    "vivit_h_16x2": 636_945_640,
    "vivit_h_14x2": 637_713_640,
}
TEMPORAL_DEPTHS = {"vivit_b_16x2_fe": 4, "vivit_l_16x2_fe": 24}
LETTERS = {"b": "base", "l": "large", "h": "huge"}
PUBLISHED = {"vivit_b_16x2": "google/vivit-b-16x2-kinetics400"}
PREPARE = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 0.875}


def _entry(name: str) -> ModelEntry:
    letter, tubelet, *suffix = name.removeprefix("vivit_").split("_")
    patch, frames = map(int, tubelet.split("x"))
    variant = VARIANTS["_".join(["", *suffix])]
    size: dict[str, Any] = dict(SIZES[LETTERS[letter]])
    tiny: dict[str, Any] = dict(TINY)
    for sizes in (size, tiny):
        sizes["spatial_depth"] = sizes.pop("depth")
    if name in TEMPORAL_DEPTHS:
        size["temporal_depth"], tiny["temporal_depth"] = TEMPORAL_DEPTHS[name], 2
    config = {"image_size": 224, "frames": 32, "image_patch_size": patch, "frame_patch_size": frames}
    return ModelEntry(
        name=name,
        architecture=ViViT,
        config={**config, **size, "num_classes": 400, "variant": variant},
        parameters=PARAMETERS[name],
        tiny=tiny,
        default_cfg=PREPARE,
        hub_id=PUBLISHED.get(name),
        # The class token of the frames gets its position outside the module of the positions.
        exceptions=NO_BATCH if variant == "factorized_encoder" else {},
    )


ENTRIES = [_entry(name) for name in PARAMETERS]
