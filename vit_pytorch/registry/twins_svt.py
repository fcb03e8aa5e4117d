"""The Twins paper's models at three sizes, Twins-SVT and Twins-PCPVT (Chu et al. 2021, tables 1 and 2)."""

from collections.abc import Mapping
from typing import Any

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.twins_svt import TwinsSVT

REDUCTION = (8, 4, 2, 1)


def stages(**values: tuple[int | None, ...]) -> dict[str, int | None]:
    """Name one argument for each stage."""
    return {f"s{i}_{name}": value for name, each in values.items() for i, value in enumerate(each, 1)}


def _svt(dim: int, pairs: tuple[int, ...]) -> dict[str, Any]:
    return stages(emb_dim=(dim, 2 * dim, 4 * dim, 8 * dim), depth=pairs, global_k=REDUCTION)


def _pcpvt(depth: tuple[int, ...]) -> dict[str, Any]:
    sizes = stages(emb_dim=(64, 128, 320, 512), depth=depth, global_k=REDUCTION, local_patch_size=(None,) * 4)
    return {**sizes, "heads": (1, 2, 5, 8), "mlp_ratio": (8, 8, 4, 4)}


SIZES: dict[str, tuple[Mapping[str, Any], int]] = {
    "svt_small": (_svt(64, (1, 1, 5, 2)), 24_060_776),
    "svt_base": (_svt(96, (1, 1, 9, 1)), 56_070_952),
    "svt_large": (_svt(128, (1, 1, 9, 1)), 99_271_400),
    "pcpvt_small": (_pcpvt((3, 4, 6, 3)), 24_106_216),
    "pcpvt_base": (_pcpvt((3, 4, 18, 3)), 43_828_456),
    "pcpvt_large": (_pcpvt((3, 8, 27, 3)), 60_989_672),
}
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "heads": (1, 2, 3, 4),
    "mlp_ratio": 2,
    **stages(emb_dim=(8, 16, 24, 32), depth=(1, 1, 1, 1)),
}
TINY_WINDOWS = {**TINY, **stages(local_patch_size=(3, 3, 2, 2))}


def _entry(size: str) -> ModelEntry:
    config, parameters = SIZES[size]
    return ModelEntry(
        name=f"twins_{size}",
        architecture=TwinsSVT,
        config={"image_size": 224, "num_classes": 1000, **config},
        parameters=parameters,
        tiny=TINY_WINDOWS if size.startswith("svt") else TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9},
        exceptions=FOLDED,
        hub_id=f"timm/twins_{size}.in1k",
    )


ENTRIES = [_entry(size) for size in SIZES]
