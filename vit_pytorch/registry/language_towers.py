"""Vision towers of language models: Qwen3-VL (arXiv:2511.21631) and DeepSeek-V4.1 (arXiv:2609.19969)."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.towers import HALF
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

QWEN3 = {
    "image_size": 768,
    "patch_size": 16,
    "positions": [{"kind": "learned", "dynamic_img_size": "corners"}, "rope_halves"],
    "act": "gelu_tanh",
    "head": {"kind": "linear", "norm": None, "standardize": True},
}
DEEPSEEK = {
    "image_size": 546,
    "patch_size": 14,
    "positions": "rope_halves",
    "out_bias": "attention",
    "act": "swiglu",
    "norm": "rms",
    "head": {"kind": "linear", "standardize": True},
}
SO400M = {"dim": 1152, "depth": 27, "heads": 16, "dim_head": 72, "mlp_dim": 4304}
LARGE = {"dim": 1024, "depth": 32, "heads": 16, "mlp_dim": 2816}
# name: parameters, timm's release, sizes, options
MODELS: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    "qwen3_vit_88m": (88_183_528, "qwen3_5_0_8b", SIZES["base"], QWEN3),
    "qwen3_vit_306m": (306_481_128, "qwen3_5_2b", SIZES["large"], QWEN3),
    "qwen3_vit_416m": (416_159_704, "qwen3_8_27b", SO400M, QWEN3),
    "deepseek_vit_412m": (412_867_560, "deepseek_v4_1_flash", LARGE, DEEPSEEK),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, shape, options = MODELS[name]
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={"num_classes": 0, **shape, "pool": "mean", **options},
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg={
            **HALF,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash" if options is QWEN3 else "border",
        },
        hub_id=f"timm/{name}.{tag}",
    )


ENTRIES = [_entry(name) for name in MODELS]
