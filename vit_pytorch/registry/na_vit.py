"""NaViT at the sizes of the ViT paper (Dehghani et al. 2023), and timm's with factorised positions."""

from vit_pytorch.na_vit import NaViT
from vit_pytorch.na_vit_nested_tensor import NaViT as NestedNaViT
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY

PARAMETERS = {"tiny": 6_123_112, "small": 23_746_792, "base": 93_498_856, "large": 316_677_096}
PREPARE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 1.0}
CLASSES = {"navit": NaViT, "navit_nested": NestedNaViT}


def _entry(kind: str, size: str) -> ModelEntry:
    return ModelEntry(
        name=f"{kind}_{size}_patch16",
        architecture=CLASSES[kind],
        config={"image_size": 256, "patch_size": 16, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[size],
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
        exceptions={"gradients_per_sample": "Opacus' rule for LayerNorm needs a bias"},
    )


ENTRIES = [
    *(_entry(kind, size) for kind in CLASSES for size in PARAMETERS),
    ModelEntry(
        name="naflexvit_base_patch16_parfac_gap",
        architecture=NaViT,
        config={
            "image_size": 256,
            "patch_size": 16,
            "num_classes": 1000,
            **SIZES["base"],
            "pos_type": "aspect",
            "pool": "mean",
            "fc_norm": True,
            "num_registers": 4,
            "layer_scale": 1e-5,
            "qk_norm": "none",
            "qkv_bias": True,
            "norm_bias": True,
        },
        parameters=86_461_672,
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
        hub_id="timm/naflexvit_base_patch16_parfac_gap.e300_s576_in1k",
        exceptions={"too_large": "its positions are interpolated to images of any size"},
    ),
]
