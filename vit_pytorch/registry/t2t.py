"""T2T-ViT at its paper's sizes (Yuan et al. 2021, table 2), by the official code's names.

`_t_` in a name says that tokens attend by softmax between the soft splits, else a performer stands there.
The counts are of what is trained: the official code counts its fixed tables as parameters, too, the
positions' 197 rows and the performers' two matrices of 2048.
"""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.t2t import T2TViT

SIZES = {
    "7": {"dim": 256, "depth": 7, "heads": 4, "mlp_dim": 512},
    "10": {"dim": 256, "depth": 10, "heads": 4, "mlp_dim": 512},
    "12": {"dim": 256, "depth": 12, "heads": 4, "mlp_dim": 512},
    "14": {"dim": 384, "depth": 14, "heads": 6, "mlp_dim": 1152},
    "19": {"dim": 448, "depth": 19, "heads": 7, "mlp_dim": 1344},
    "24": {"dim": 512, "depth": 24, "heads": 8, "mlp_dim": 1536},
    "14_resnext": {"dim": 384, "depth": 14, "heads": 32, "mlp_dim": 1152, "dim_head": 12},
    "14_wide": {"dim": 768, "depth": 4, "heads": 12, "mlp_dim": 2304},
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
PREPARE = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}
PERFORMER = {"tokens_type": "performer", "token_dropout": 0.1}
TINY = {"image_size": 64, "num_classes": 7, "token_dim": 8, "token_dropout": 0.0}
TINY_BACKBONE = {"dim": 24, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 48}


def _entry(size: str) -> ModelEntry:
    softmax = size.startswith("t_")
    return ModelEntry(
        name=f"t2t_vit_{size}",
        architecture=T2TViT,
        config={
            "image_size": 224,
            "num_classes": 1000,
            **SIZES[size.removeprefix("t_")],
            **({"tokens_type": "transformer"} if softmax else PERFORMER),
        },
        parameters=PARAMETERS[size],
        tiny={**TINY, **TINY_BACKBONE},
        default_cfg=PREPARE,
    )


ENTRIES = [_entry(size) for size in PARAMETERS]
