"""Adaptive token sampling in blocks 3 to 11 of DeiT-S, the authors' configuration (arXiv:2111.15667)."""

from vit_pytorch.ats_vit import ATSViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import TINY

TOKENS_CHANGE = "the last layers keep some of the patches, which is no map: no map is the final feature"

ENTRIES = [
    ModelEntry(
        name="deit_small_patch16_224_ats",
        architecture=ATSViT,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            "dim": 384,
            "depth": 12,
            "max_tokens_per_depth": (196,) * 12,
            "heads": 6,
            "mlp_dim": 1536,
            "ats_layers": tuple(range(3, 12)),
            "drop_tokens": True,
        },
        parameters=22_050_664,
        tiny={
            **TINY,
            "depth": 4,
            "num_classes": 7,
            "max_tokens_per_depth": (64, 64, 64, 24),
            # The last block alone: in bf16 other tokens are sampled, and further blocks would tell.
            "ats_layers": (3,),
            # Cutting follows the batch, and with it the last bit, which the contracts compare.
            "drop_tokens": False,
        },
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        hub_id="timm/deit_small_patch16_224.fb_in1k",
        exceptions={
            "intermediate_norm_and_prefix": TOKENS_CHANGE,
            "recorder_misses_no_softmax": "tokens are scored by a row of a map that is computed apart",
        },
    )
]
