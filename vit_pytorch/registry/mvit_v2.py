"""MViTv2's models (Li et al. 2021, table 1), and those with a class token for ImageNet-21k (section 5.1)."""

from typing import Any

from vit_pytorch.mvit_v2 import MViTv2
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

SMALL: dict[str, Any] = {"depth": (1, 2, 11, 2)}
BASE: dict[str, Any] = {"depth": (2, 3, 16, 3)}
LARGE: dict[str, Any] = {"dim": 144, "heads": 2, "depth": (2, 6, 36, 4)}
HUGE: dict[str, Any] = {"dim": 192, "heads": 3, "depth": (4, 8, 60, 8)}
WIDE: dict[str, Any] = {"class_token": True, "num_classes": 19168}
# name: parameters with 1000 classes, arguments, release
MODELS: dict[str, tuple[int, dict[str, Any], str | None]] = {
    "mvitv2_tiny": (24_173_320, {}, "fb_in1k"),
    "mvitv2_small": (34_870_216, SMALL, "fb_in1k"),
    "mvitv2_base": (51_472_744, BASE, "fb_in1k"),
    "mvitv2_large": (217_992_952, {**LARGE, "widen": "feedforward"}, "fb_in1k"),
    "mvitv2_small_cls": (34_870_312, {**SMALL, "class_token": True}, None),
    "mvitv2_base_cls": (51_472_840, {**BASE, **WIDE}, "fb_inw21k"),
    "mvitv2_large_cls": (213_635_512, {**LARGE, **WIDE}, "fb_inw21k"),
    "mvitv2_huge_cls": (666_879_912, {**HUGE, **WIDE}, "fb_inw21k"),
}
UNSEEN = {
    "every_parameter_has_a_gradient": "the class token alone is classified, and neither the convolution "
    "of the last block's queries nor its embeddings of offsets act on it"
}
# Maps of 16, 8, 4 and 2 cells.
TINY = {"image_size": 64, "num_classes": 7, "dim": 16, "depth": (1, 2, 2, 1), "heads": 1, "mlp_ratio": 2}


def _entry(name: str) -> ModelEntry:
    parameters, arguments, tag = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=MViTv2,
        config={"image_size": 224, "num_classes": 1000, **arguments},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
        exceptions={**FOLDED, **(UNSEEN if "class_token" in arguments else {})},
    )


ENTRIES = [_entry(name) for name in MODELS]
