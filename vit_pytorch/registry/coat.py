"""CoaT's models (Xu et al. 2021, tables 1 and 2), and the later CoaT-Lite Medium of the authors' code."""

from typing import Any

from vit_pytorch.coat import CoaT
from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry

LITE: dict[str, Any] = {"parallel_depth": None, "mlp_ratio": (8, 8, 4, 4)}
MEDIUM: dict[str, Any] = {"parallel_depth": None, "depth": (3, 6, 10, 8)}
# name: channels of each scale, parameters, other arguments
MODELS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "coat_tiny": ((152, 152, 152, 152), 5_498_540, {"parallel_depth": 6}),
    "coat_mini": ((152, 216, 216, 216), 10_337_004, {"parallel_depth": 6}),
    "coat_small": ((152, 320, 320, 320), 21_693_908, {"parallel_depth": 6}),
    "coat_lite_tiny": ((64, 128, 256, 320), 5_721_960, LITE),
    "coat_lite_mini": ((64, 128, 320, 512), 11_011_560, LITE),
    "coat_lite_small": ((64, 128, 320, 512), 19_838_504, {**LITE, "depth": (3, 4, 6, 3)}),
    "coat_lite_medium": ((128, 256, 320, 512), 44_571_048, MEDIUM),
    "coat_lite_medium_384": ((128, 256, 320, 512), 44_571_048, {**MEDIUM, "image_size": 384}),
}
TINY: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 7,
    "depth": (1, 1, 1, 2),
    "heads": 2,
    "mlp_ratio": 2,
    "kernel_sizes": (3, 5),
    "kernel_heads": (1, 1),
}
PARALLEL = {
    "intermediate_norm_and_prefix": "an intermediate is the tokens of one scale, the features have the class "
    "tokens of three"
}


def _entry(name: str) -> ModelEntry:
    dim, parameters, arguments = MODELS[name]
    parallel = arguments["parallel_depth"] is not None
    large = {"crop_pct": 1.0, "crop_mode": "squash"} if name.endswith("384") else {"crop_pct": 0.9}
    return ModelEntry(
        name=name,
        architecture=CoaT,
        config={"image_size": 224, "num_classes": 1000, "dim": dim, **arguments},
        parameters=parameters,
        tiny={**TINY, "dim": (12, 16, 16, 16), "parallel_depth": 2}
        if parallel
        else {**TINY, "dim": (12, 16, 20, 24)},
        default_cfg={**IMAGENET, "interpolation": "bicubic", **large},
        hub_id=f"timm/{name}.in1k",
        exceptions={**FOLDED, **PARALLEL} if parallel else FOLDED,
    )


ENTRIES = [_entry(name) for name in MODELS]
