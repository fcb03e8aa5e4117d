"""SimpleViT at the sizes of the ViT paper; S/16 is the one that its paper trains (Beyer et al. 2022)."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.simple_vit import SimpleViT

PARAMETERS = {
    ("tiny", 14): 5_644_840,
    ("tiny", 16): 5_679_400,
    ("tiny", 32): 6_121_768,
    ("small", 14): 21_905_512,
    ("small", 16): 21_974_632,
    ("small", 32): 22_859_368,
    ("base", 14): 86_277_352,
    ("base", 16): 86_415_592,
    ("base", 32): 88_185_064,
    ("large", 14): 303_939_560,
    ("large", 16): 304_123_880,
    ("large", 32): 306_483_176,
    ("huge", 14): 631_715_560,
    ("huge", 16): 631_945_960,
    ("huge", 32): 634_895_080,
}


def _entry(size: str, patch: int) -> ModelEntry:
    return ModelEntry(
        name=f"simple_vit_{size}_patch{patch}_224",
        architecture=SimpleViT,
        config={"image_size": 224, "patch_size": patch, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[size, patch],
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
    )


ENTRIES = [_entry(*key) for key in PARAMETERS]
