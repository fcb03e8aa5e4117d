"""LookupViT of the base and large sizes, with 3 x 3 to 10 x 10 compressed tokens (arXiv:2407.12753)."""

from vit_pytorch.look_vit import LookupViT
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY

# No checkpoints are published, and the number of compressed tokens has no parameters.
PARAMETERS = {"base": 134_479_720, "large": 477_713_896}
SIDES = (3, 5, 7, 10)
OTHER_WAYS = {"head_on": "both", "reuse": "logits", "pool": "mean"}


def _entry(size: str, side: int) -> ModelEntry:
    return ModelEntry(
        name=f"lookupvit_{size}_patch16_224_{side}x{side}",
        architecture=LookupViT,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            **SIZES[size],
            "num_compressed": side * side,
        },
        parameters=PARAMETERS[size],
        tiny={
            **TINY,
            "depth": 3,
            "num_classes": 7,
            "num_compressed": (3, 2),
            **(OTHER_WAYS if size == "large" else {}),
        },
        default_cfg=PREPARE,
        exceptions={"intermediate_norm_and_prefix": "maps are of the patches, features of compressed tokens"},
    )


ENTRIES = [_entry(size, side) for size in PARAMETERS for side in SIDES]
