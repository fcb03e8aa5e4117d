"""DeepViT as its authors' code names it (Zhou et al. 2021): S and L, and the ViTs of the ablation."""

from typing import Any

from vit_pytorch.deepvit import DeepViT
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import PREPARE, TINY

SIZES: dict[str, dict[str, Any]] = {
    "S": {"dim": 396, "depth": 16, "heads": 12, "mlp_dim": 1188, "dim_head": 33},
    "L": {"dim": 420, "depth": 32, "heads": 12, "mlp_dim": 1260, "dim_head": 35},
    "16b": {"dim": 384, "depth": 16, "heads": 12, "mlp_dim": 1152, "dim_head": 32},
    "24b": {"dim": 384, "depth": 24, "heads": 12, "mlp_dim": 1152, "dim_head": 32},
    "32b": {"dim": 384, "depth": 32, "heads": 12, "mlp_dim": 1152, "dim_head": 32},
}
ADJUSTED = {"scale_adjustment": 0.5, "stem": "conv"}
S = {**SIZES["S"], "reattn_layers": 5, "reattn_scale": 33**-0.5, **ADJUSTED}
L = {**SIZES["L"], "reattn_layers": 12, **ADJUSTED}


def _entry(
    name: str, parameters: int, config: dict[str, Any], *, image_size: int = 224, crop_pct: float = 0.9
) -> ModelEntry:
    reattn = {"reattn_layers": 1} if "reattn_layers" in config else {}
    return ModelEntry(
        name=name,
        architecture=DeepViT,
        config={"image_size": image_size, "patch_size": 16, "num_classes": 1000, **config},
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, **reattn},
        default_cfg={**PREPARE, "crop_pct": crop_pct},
    )


ENTRIES = [
    _entry("deepvit_S", 27_312_632, S),
    _entry("deepvit_L", 58_883_708, L),
    _entry("deepvit_L_384", 59_043_308, L, image_size=384, crop_pct=1.0),
    _entry("deepvit_patch16_224_re_attn_16b", 24_426_664, SIZES["16b"]),
    _entry("deepvit_patch16_224_re_attn_24b", 36_261_448, SIZES["24b"]),
    _entry("deepvit_patch16_224_re_attn_32b", 48_096_232, SIZES["32b"]),
]
