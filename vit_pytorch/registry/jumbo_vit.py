"""The jumbo ViT at its authors' sizes (Fuller et al. 2025), by the names of their weights.

The counts are of what computes: the authors' code carries a class token that it never uses, too, of `dim`.
"""

from vit_pytorch.jumbo_vit import JumboViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import TINY

# dim, heads, jumbo_pieces
SIZES = {
    "pico": (96, 3, 6),
    "nano": (128, 4, 6),
    "tiny": (192, 3, 6),
    "small": (384, 6, 6),
    "base": (768, 12, 3),
}
PARAMETERS = {
    "pico": 4_779_400,
    "nano": 8_141_672,
    "tiny": 17_520_424,
    "small": 66_890_344,
    "base": 131_406_568,
}


def _entry(size: str) -> ModelEntry:
    dim, heads, pieces = SIZES[size]
    sizes = {"dim": dim, "depth": 12, "heads": heads, "mlp_dim": 4 * dim, "jumbo_pieces": pieces}
    return ModelEntry(
        name=f"jumbo_{size}",
        architecture=JumboViT,
        config={"image_size": 224, "patch_size": 16, "num_classes": 1000, **sizes},
        parameters=PARAMETERS[size],
        tiny={**TINY, "num_classes": 7, "jumbo_pieces": 3},
        default_cfg={**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0},
        exceptions={"widths": "the embedding is all pieces of the jumbo token, and the mean of the patches"},
    )


ENTRIES = [_entry(size) for size in SIZES]
