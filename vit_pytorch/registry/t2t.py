"""T2T-ViT at its paper's sizes (Yuan et al. 2021, table 2), by the official code's names.

`_t_` in a name says that tokens attend by softmax between the soft splits, else a performer stands there.
The counts are of what is trained: the official code counts its fixed tables as parameters, too, the
positions' 197 rows and the performers' two matrices of 2048.
"""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.t2t import T2TViT

# dim, depth, heads, mlp_dim
SIZES = {
    "7": (256, 7, 4, 512),
    "10": (256, 10, 4, 512),
    "12": (256, 12, 4, 512),
    "14": (384, 14, 6, 1152),
    "19": (448, 19, 7, 1344),
    "24": (512, 24, 8, 1536),
    "14_resnext": (384, 14, 32, 1152),
    "14_wide": (768, 4, 12, 2304),
}
PARAMETERS = {
    "7": 4_255_694,
    "10": 5_834_702,
    "12": 6_887_374,
    "14": 21_465_806,
    "19": 39_085_070,
    "24": 64_000_974,
    "14_resnext": 21_465_806,
    "14_wide": 25_000_910,
    "t_14": 21_465_422,
    "t_19": 39_084_686,
    "t_24": 64_000_590,
}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9}
KINDS: dict[str, dict[str, Any]] = {
    "transformer": {"tokens_type": "transformer"},
    "performer": {"tokens_type": "performer", "token_dropout": 0.1},
}
TINY = {
    "dim": 24,
    "image_size": 64,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 48,
    "num_classes": 7,
    "token_dim": 8,
    "token_dropout": 0.0,
    "dim_head": 12,
    "qk_scale": 24**-0.5,
}

PERFORMER = {"recorder_names_every_kernel": "the performers between the soft splits compute no weights"}


def _entry(size: str) -> ModelEntry:
    dim, depth, heads, mlp_dim = SIZES[size.removeprefix("t_")]
    config = {
        "dim": dim,
        "image_size": 224,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "num_classes": 1000,
        **KINDS["transformer" if size.startswith("t_") else "performer"],
        "dim_head": dim // heads,
        # The scale that the authors' published weights were trained with.
        "qk_scale": (512 if size == "14_wide" else dim) ** -0.5,
    }
    return ModelEntry(
        name=f"t2t_vit_{size}",
        architecture=T2TViT,
        config=config,
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg=PREPARE,
        exceptions={} if size.startswith("t_") else PERFORMER,
    )


ENTRIES = [_entry(size) for size in PARAMETERS]
