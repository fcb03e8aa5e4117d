"""Swin Transformers V2 in the form of C. Reich and timm, whose windows are an eighth of the first map."""

from typing import Any

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.registry.swin import SIZES, TINY
from vit_pytorch.swin_v2_cr import SwinTransformerV2CR

LARGER: dict[str, dict[str, Any]] = {
    "huge": {"dim": 352, "depth": (2, 2, 18, 2), "norm_period": 6},
    "giant": {"dim": 512, "depth": (2, 2, 42, 2), "norm_period": 6},
}
# timm's name, parameters with 1000 classes, whether weights are published
MODELS = (
    ("swinv2_cr_tiny_384", 28_332_124, False),
    ("swinv2_cr_tiny_224", 28_332_124, False),
    ("swinv2_cr_tiny_ns_224", 28_333_468, True),
    ("swinv2_cr_small_384", 49_695_100, False),
    ("swinv2_cr_small_224", 49_695_100, True),
    ("swinv2_cr_small_ns_224", 49_696_444, True),
    ("swinv2_cr_small_ns_256", 49_696_444, False),
    ("swinv2_cr_base_384", 87_877_464, False),
    ("swinv2_cr_base_224", 87_877_464, False),
    ("swinv2_cr_base_ns_224", 87_879_256, False),
    ("swinv2_cr_large_384", 196_682_512, False),
    ("swinv2_cr_large_224", 196_682_512, False),
    ("swinv2_cr_huge_384", 657_938_780, False),
    ("swinv2_cr_huge_224", 657_829_928, False),
    ("swinv2_cr_giant_384", 2_598_761_896, False),
    ("swinv2_cr_giant_224", 2_598_761_896, False),
)
# at this size it has heads of 44 channels instead of 32
HEADS = {"swinv2_cr_huge_224": {"heads": (8, 16, 32, 64)}}


def _entry(name: str, parameters: int, published: bool) -> ModelEntry:
    size, norms = int(name[-3:]), "_ns_" in name
    arguments = {**SIZES, **LARGER}[name.split("_")[2]]
    if norms:
        arguments = {**arguments, "norm_stages": True}
    return ModelEntry(
        name=name,
        architecture=SwinTransformerV2CR,
        config={
            "num_classes": 1000,
            **arguments,
            **HEADS.get(name, {}),
            "image_size": size,
        },
        parameters=parameters,
        tiny={**TINY, "position_dim": 16, **({"norm_period": 1} if "norm_period" in arguments else {})},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9 if size == 224 else 1.0},
        hub_id=f"timm/{name}.sw_in1k" if published else None,
        exceptions=FOLDED,
    )


ENTRIES = [_entry(*model) for model in MODELS]
