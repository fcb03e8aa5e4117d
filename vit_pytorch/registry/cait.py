"""CaiT's models (Touvron et al. 2021, table 3): sizes XXS to M, depth, and the resolution of fine-tuning."""

from typing import Any

from vit_pytorch.cait import CaiT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

SIZES = {"xxs": (192, 4), "xs": (288, 6), "s": (384, 8), "m": (768, 16)}
PARAMETERS = {
    ("xxs", 24, 224): 11_956_264,
    ("xxs", 24, 384): 12_029_224,
    ("xxs", 36, 224): 17_299_720,
    ("xxs", 36, 384): 17_372_680,
    ("xs", 24, 384): 26_670_088,
    ("s", 24, 224): 46_916_200,
    ("s", 24, 384): 47_062_120,
    ("s", 36, 384): 68_366_632,
    ("m", 36, 384): 271_221_352,
    ("m", 48, 448): 356_460_520,
}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0}
TINY = {"image_size": 32, "patch_size": 4, "dim": 24, "depth": 2, "cls_depth": 2, "heads": 2, "mlp_dim": 48}


def _entry(size: str, depth: int, image_size: int) -> ModelEntry:
    name = f"cait_{size}{depth}_{image_size}"
    dim, heads = SIZES[size]
    config: dict[str, Any] = {
        "image_size": image_size,
        "patch_size": 16,
        "num_classes": 1000,
        "dim": dim,
        "depth": depth,
        "cls_depth": 2,
        "heads": heads,
        "mlp_dim": 4 * dim,
    }
    if (size, depth) == ("xxs", 36):
        # The authors' program starts this one as the models of 24 blocks.
        config["layer_scale"] = 1e-5
    return ModelEntry(
        name=name,
        architecture=CaiT,
        config=config,
        parameters=PARAMETERS[size, depth, image_size],
        tiny={**TINY, "layer_scale": 0.1, "num_classes": 7},
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.fb_dist_in1k",
        exceptions={
            "intermediate_norm_and_prefix": "the class token joins behind the blocks: what is between them "
            "has no prefix, the features do"
        },
    )


ENTRIES = [_entry(*model) for model in PARAMETERS]
