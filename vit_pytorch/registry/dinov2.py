"""DINOv2's models at patch 14, with and without registers (arXiv:2304.07193; registers: arXiv:2309.16588)."""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

# with a classifier of 1000 classes, which the published weights leave to the user
PARAMETERS = {
    ("small", 0): 22_441_192,
    ("base", 0): 87_348_712,
    ("large", 0): 305_392_616,
    ("giant", 0): 1_138_016_232,
    ("small", 4): 22_442_344,
    ("base", 4): 87_351_016,
    ("large", 4): 305_395_688,
    ("giant", 4): 1_138_020_840,
}
SHAPES: dict[str, dict[str, Any]] = {**SIZES, "giant": {**SIZES["giant2"], "act": "swiglu"}}


def _entry(size: str, registers: int) -> ModelEntry:
    name = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": 518,
            "patch_size": 14,
            "num_classes": 0,
            **SHAPES[size],
            "layer_scale": 1e-5,
            "num_registers": registers,
            "positions": {"kind": "learned", "class_token": registers == 0},
        },
        parameters=PARAMETERS[size, registers],
        tiny={**TINY, "num_classes": 7},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0},
        hub_id=f"timm/{name}.lvd142m",
    )


ENTRIES = [_entry(size, registers) for registers in (0, 4) for size in ("small", "base", "large", "giant")]
