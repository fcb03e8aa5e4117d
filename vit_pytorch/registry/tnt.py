"""TNT's models (Han et al. 2021, table 1), and timm's first version of the small one."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.tnt import TNT

SMALL: dict[str, Any] = {"dim": 384, "heads": 6, "mlp_dim": 1536, "inner_dim": 24, "inner_mlp_dim": 96}
BASE: dict[str, Any] = {"dim": 640, "heads": 10, "mlp_dim": 2560, "inner_dim": 40, "inner_mlp_dim": 160}
# name: parameters, arguments
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "tnt_s_patch16_224": (23_768_584, SMALL),
    "tnt_b_patch16_224": (65_428_680, BASE),
    "tnt_s_legacy_patch16_224": (23_755_336, {**SMALL, "variant": "timm"}),
}
PREPARE = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 0.9}
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 48,
    "inner_dim": 8,
    "inner_heads": 2,
    "inner_mlp_dim": 16,
}

ENTRIES = [
    ModelEntry(
        name=name,
        architecture=TNT,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            "depth": 12,
            "inner_heads": 4,
            **arguments,
        },
        parameters=parameters,
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.in1k",
        exceptions={
            "gradients_per_sample": "Opacus takes patches that are folded into the batch for samples"
        },
    )
    for name, (parameters, arguments) in MODELS.items()
]
