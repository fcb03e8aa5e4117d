"""EdgeNeXt's models (Maaz et al. 2022, table 1; the base model is the authors' code's), and timm's own."""

from typing import Any

from vit_pytorch.edgenext import EdgeNeXt
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

RW: dict[str, Any] = {"stem": "overlap", "down": "depthwise", "conv_bias": False}
# name: parameters, arguments, tag, share of the image that is seen
MODELS: dict[str, tuple[int, dict[str, Any], str, float]] = {
    "edgenext_xx_small": (1_327_216, {"depth": (2, 2, 6, 2), "heads": (4, 4, 4, 4)}, "in1k", 0.9),
    "edgenext_x_small": (2_336_804, {"dim": (32, 64, 100, 192), "heads": (4, 4, 4, 4)}, "in1k", 0.9),
    "edgenext_small": (5_586_832, {"dim": (48, 96, 160, 304)}, "usi_in1k", 0.95),
    "edgenext_base": (18_511_292, {"dim": (80, 160, 288, 584)}, "usi_in1k", 0.95),
    "edgenext_small_rw": (7_826_512, {"dim": (48, 96, 192, 384), **RW}, "sw_in1k", 0.9),
}
# Maps of 8, 4 and 2 cells.
TINY: dict[str, Any] = {
    "image_size": 32,
    "num_classes": 7,
    "dim": (8, 16, 32),
    "depth": (1, 1, 1),
    "global_depth": (0, 1, 1),
    "heads": (1, 2, 2),
    "kernel_size": (3, 3, 3),
    "scales": (2, 2, 3),
    "positions": (False, True, False),
    "mlp_ratio": 2,
    "layer_scale": 0.1,
}


def _entry(name: str) -> ModelEntry:
    parameters, arguments, tag, crop = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=EdgeNeXt,
        config={"num_classes": 1000, "image_size": 256, **arguments},
        parameters=parameters,
        # The first block after a depth-wise halving is one without a convolution.
        tiny={**TINY, **({"depth": (1, 1, 2), "global_depth": (0, 0, 1)} if "rw" in name else {})},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": crop},
        hub_id=f"timm/{name}.{tag}",
        exceptions=FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
