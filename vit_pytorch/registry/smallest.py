"""timm's smallest ViTs, by which it tests."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, TINY
from vit_pytorch.vit import ViT

WIDE = {"dim": 96, "depth": 9, "heads": 3, "dim_head": 32}
ANY_SIZE = {"kind": "learned", "registers": True, "dynamic_img_size": True}
REGISTER: dict[str, Any] = {
    "pool": "mean",
    "num_registers": 1,
    "positions": ANY_SIZE,
    "layer_scale": 1e-5,
    "head": {"kind": "linear", "norm": True},
}
# name: parameters, and what differs from the first
MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "test_vit": (371_240, {}),
    "test_vit2": (455_720, {"depth": 8, **REGISTER}),
    "test_vit3": (
        930_280,
        {
            **WIDE,
            "mlp_dim": 192,
            **REGISTER,
            "positions": {"kind": "learned", "registers": True},
            "pool": {"kind": "map", "prefix": True},
            "head": "linear",
        },
    ),
    "test_vit4": (1_020_520, {**WIDE, "mlp_dim": 288, **REGISTER, "norm": "rms"}),
}

# All that is special, in each tiny model.
ALL = {
    key: value for key, value in MODELS["test_vit3"][1].items() if key not in WIDE and key != "mlp_dim"
} | {"norm": "layer"}


def _entry(name: str) -> ModelEntry:
    parameters, options = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": 160,
            "patch_size": 16,
            "num_classes": 1000,
            "dim": 64,
            "depth": 6,
            "heads": 2,
            "dim_head": 32,
            "mlp_dim": 192,
            "positions": {"kind": "learned", "dynamic_img_size": True},
            **options,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, **ALL},
        default_cfg={**PREPARE, "crop_pct": 0.95},
        # The last has no published weights.
        hub_id=None if name == "test_vit4" else f"timm/{name}.r160_in1k",
    )


ENTRIES = [_entry(name) for name in MODELS]
