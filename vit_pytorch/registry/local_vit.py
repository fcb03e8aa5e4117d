"""LocalViT at its authors' sizes (Li et al. 2021), by the names that their code has.

A name holds the ratio of the feed-forward, its activation and gate, and the reduction of the gate.
"""

from typing import Any

from vit_pytorch.local_vit import LocalViT
from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import TINY

SIZES = {"tiny": {"dim": 192, "depth": 12, "heads": 4}, "small": {"dim": 384, "depth": 12, "heads": 8}}
ACTS: dict[str, dict[str, Any]] = {
    "act1": {"act": "relu6", "gate": "none"},
    "act3": {"act": "hardswish", "gate": "se"},
}
PARAMETERS = {
    "localvit_tiny_mlp6_act1": 7_655_080,
    "localvit_tiny_mlp4_act3_r4": 9_376_168,
    "localvit_tiny_mlp4_act3_r192": 5_908_696,
    "localvit_small_mlp4_act3_r384": 22_433_176,
}
UNSEEN = (
    "the last feed-forward acts on the patches alone, which the class token no longer sees, as in the paper"
)


def _entry(name: str) -> ModelEntry:
    _, size, mlp, act, *reduction = name.split("_")
    sizes = SIZES[size]
    return ModelEntry(
        name=name,
        architecture=LocalViT,
        config={
            "image_size": 224,
            "patch_size": 16,
            "num_classes": 1000,
            **sizes,
            "mlp_dim": sizes["dim"] * int(mlp.removeprefix("mlp")),
            **ACTS[act],
            "reduction": int(reduction[0].removeprefix("r")) if reduction else 4,
        },
        parameters=PARAMETERS[name],
        tiny={**TINY, "num_classes": 7, **ACTS["act3"], "reduction": 4},
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.875},
        exceptions={"every_parameter_has_a_gradient": UNSEEN},
    )


ENTRIES = [_entry(name) for name in PARAMETERS]
