"""CrossViT's models (Chen et al. 2021, table 1); those with a dagger have a convolutional stem."""

from typing import Any

from vit_pytorch.cross_vit import CrossViT
from vit_pytorch.registry.cait import PREPARE
from vit_pytorch.registry.entry import ModelEntry

# Widths of the small and the large branch, heads, blocks of the large branch, ratio of the feed-forward.
SIZES = {
    "tiny": (96, 192, 3, 4, 4),
    "small": (192, 384, 6, 4, 4),
    "base": (384, 768, 12, 4, 4),
    "9": (128, 256, 4, 3, 3),
    "15": (192, 384, 6, 5, 3),
    "18": (224, 448, 7, 6, 3),
}
PARAMETERS = {
    "crossvit_tiny_240": 7_014_800,
    "crossvit_small_240": 26_856_272,
    "crossvit_base_240": 105_025_232,
    "crossvit_9_240": 8_553_296,
    "crossvit_15_240": 27_528_464,
    "crossvit_18_240": 43_271_408,
    "crossvit_9_dagger_240": 8_776_592,
    "crossvit_15_dagger_240": 28_209_008,
    "crossvit_15_dagger_408": 28_500_080,
    "crossvit_18_dagger_240": 44_266_976,
    "crossvit_18_dagger_408": 44_606_560,
}
LARGE_VIEW = {240: 224, 408: 384}
TINY = {
    "num_classes": 7,
    "depth": 2,
    "sm_dim": 16,
    "sm_enc_heads": 2,
    "sm_enc_mlp_dim": 32,
    "lg_dim": 24,
    "lg_enc_depth": 2,
    "lg_enc_heads": 2,
    "lg_enc_mlp_dim": 48,
    "cross_attn_heads": 2,
}
TINY_LINEAR = {"image_size": 40, "sm_patch_size": 5, "lg_patch_size": 8, "lg_image_size": 32}
TINY_DAGGER = {"image_size": 48, "lg_image_size": 32, "lg_enc_depth": 1}


def _entry(name: str) -> ModelEntry:
    _, size, *dagger, resolution = name.split("_")
    image_size = int(resolution)
    sm_dim, lg_dim, heads, lg_depth, ratio = SIZES[size]
    config: dict[str, Any] = {
        "image_size": image_size,
        "num_classes": 1000,
        "depth": 3,
        "sm_dim": sm_dim,
        "sm_patch_size": 12,
        "sm_enc_depth": 1,
        "sm_enc_heads": heads,
        "sm_enc_mlp_dim": ratio * sm_dim,
        "lg_dim": lg_dim,
        "lg_patch_size": 16,
        "lg_enc_depth": lg_depth,
        "lg_enc_heads": heads,
        "lg_enc_mlp_dim": ratio * lg_dim,
        "cross_attn_heads": heads,
        "lg_image_size": LARGE_VIEW[image_size],
    }
    if dagger:
        config["stem"] = "conv"
    return ModelEntry(
        name=name,
        architecture=CrossViT,
        config=config,
        parameters=PARAMETERS[name],
        tiny={**TINY, **(TINY_DAGGER if dagger else TINY_LINEAR)},
        default_cfg={**PREPARE, "crop_pct": 1.0 if image_size == 408 else 0.875},
        hub_id=f"timm/{name}.in1k",
        exceptions={
            "intermediate_norm_and_prefix": "an intermediate is the tokens of one branch, the features "
            "are the class tokens of both"
        },
    )


ENTRIES = [_entry(name) for name in PARAMETERS]
