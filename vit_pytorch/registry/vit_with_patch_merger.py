"""PatchMerger in the middle of ViTs of the usual sizes, merging to eight tokens (arXiv:2202.12015)."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.vit_with_patch_merger import PatchMergerViT

PARAMETERS = {
    ("small", 16): 22_053_736,
    ("small", 32): 22_882_024,
    ("base", 16): 86_573_800,
    ("base", 32): 88_230_376,
    ("large", 16): 304_334_824,
    ("large", 32): 306_543_592,
    ("huge", 14): 632_056_040,
}
TOKENS_CHANGE = "the last layers work on merged tokens, which are no map: no map is the final feature"


def _entry(size: str, patch: int) -> ModelEntry:
    return ModelEntry(
        name=f"vit_{size}_patch{patch}_224_patch_merger",
        architecture=PatchMergerViT,
        config={"image_size": 224, "patch_size": patch, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[size, patch],
        tiny={**TINY, "depth": 4, "num_classes": 7},
        default_cfg=PREPARE,
        exceptions={"intermediate_norm_and_prefix": TOKENS_CHANGE},
    )


ENTRIES = [_entry(size, patch) for size, patch in PARAMETERS]
