"""The Perception Encoder (D. Bolya et al. 2025, arXiv:2504.13181), its image towers."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.towers import HALF
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

SHAPES = {
    **SIZES,
    "gigantic": {"dim": 1536, "depth": 50, "heads": 16, "dim_head": 96, "mlp_dim": 8960},
}
LANG_LARGE = {"depth": 23, "layer_scale": 0.1}
LANG_GIGANTIC = {"depth": 47, "layer_scale": 0.1}
# name: parameters; outputs of the projection that stands in place of classes; cells of the reference grid;
# and what differs from the ViT of its size
MODELS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "vit_pe_core_tiny_patch16_384": (6_235_240, 512, 24, {}),
    "vit_pe_core_small_patch16_384": (23_971_048, 512, 24, {}),
    "vit_pe_core_base_patch16_224": (93_655_528, 1024, 14, {}),
    "vit_pe_core_large_patch14_336": (317_127_656, 1024, 24, {}),
    "vit_pe_core_gigantic_patch14_448": (1_881_603_560, 1280, 32, {}),
    "vit_pe_lang_large_patch14_448": (292_440_040, 0, 32, LANG_LARGE),
    "vit_pe_lang_gigantic_patch14_448": (1_742_459_624, 0, 32, LANG_GIGANTIC),
    "vit_pe_spatial_tiny_patch16_512": (5_876_200, 0, 32, {}),
    "vit_pe_spatial_small_patch16_512": (22_368_232, 0, 32, {}),
    "vit_pe_spatial_base_patch16_512": (87_202_792, 0, 32, {}),
    "vit_pe_spatial_large_patch14_448": (304_989_160, 0, 32, {}),
    "vit_pe_spatial_gigantic_patch14_448": (1_853_424_104, 0, 32, {"layer_scale": 0.1}),
}


def _entry(name: str) -> ModelEntry:
    parameters, projection, cells, options = MODELS[name]
    _, _, kind, size, patch, image_size = name.split("_")
    shape, class_token = SHAPES[size], size != "gigantic"
    pooling: dict[str, Any] = {"kind": "map", "heads": 8, "mlp_dim": 4 * shape["dim"], "prefix": True}
    core = kind == "core"
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": int(image_size),
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": projection,
            **shape,
            "pool": pooling if core else "mean",
            "class_token": class_token,
            "positions": [
                {"kind": "learned"},
                {"kind": "rope_scaled", "reference": (cells, cells), "offset": float(class_token)},
            ],
            "stem": {"kind": "linear", "pre_norm": True},
            "norm_eps": 1e-5,
            "head": {"kind": "linear", "norm": False if core else None},
            **options,
        },
        parameters=parameters,
        tiny={
            **TINY,
            "num_classes": 7,
            # One of each kind of pooling.
            "class_token": True,
            "positions": [{"kind": "learned"}, {"kind": "rope_scaled", "reference": (9, 9), "offset": 1.0}],
            "layer_scale": None,
            "pool": {**pooling, "heads": 3, "mlp_dim": 40} if core else "mean",
        },
        default_cfg={**HALF, "interpolation": "bicubic", "crop_pct": 1.0},
        hub_id=f"timm/{name}.fb",
    )


ENTRIES = [_entry(name) for name in MODELS]
