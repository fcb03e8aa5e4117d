"""The models of MetaFormer (Yu et al. 2021, table 1) and of its baselines (Yu et al. 2022, table 1)."""

from typing import Any

from vit_pytorch.metaformer import MetaFormer
from vit_pytorch.registry.entry import FOLDED, IMAGENET, NO_ATTENTION, ModelEntry

POOL, CONV = ("pool",) * 4, ("conv",) * 4
CONV_ATTENTION = ("conv", "conv", "attention", "attention")
# the first PoolFormer: norms of whole maps, biases and LayerScale, which the later models have not
FIRST: dict[str, Any] = {
    "mixers": POOL,
    "norm": "group",
    "bias": True,
    "down_norm": False,
    "residual_scale": None,
    "head_ratio": None,
    "act": "gelu",
    "norm_eps": 1e-5,
}
SECOND: dict[str, Any] = {"mixers": POOL, "norm": "group", "head_ratio": None}
S, M, B = (64, 128, 320, 512), (96, 192, 384, 768), (128, 256, 512, 768)
THIN = (96, 192, 384, 576)
# name: channels and blocks of each stage, parameters
MODELS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "poolformer_s12": (S, (2, 2, 6, 2), 11_915_176),
    "poolformer_s24": (S, (4, 4, 12, 4), 21_388_968),
    "poolformer_s36": (S, (6, 6, 18, 6), 30_862_760),
    "poolformer_m36": (M, (6, 6, 18, 6), 56_172_520),
    "poolformer_m48": (M, (8, 8, 24, 8), 73_473_448),
    "poolformerv2_s12": (S, (2, 2, 6, 2), 11_891_712),
    "poolformerv2_s24": (S, (4, 4, 12, 4), 21_341_464),
    "poolformerv2_s36": (S, (6, 6, 18, 6), 30_791_216),
    "poolformerv2_m36": (M, (6, 6, 18, 6), 56_077_168),
    "poolformerv2_m48": (M, (8, 8, 24, 8), 73_346_056),
    "convformer_s18": (S, (3, 3, 9, 3), 26_774_448),
    "convformer_s36": (S, (3, 12, 18, 3), 40_012_152),
    "convformer_m36": (THIN, (3, 12, 18, 3), 57_051_640),
    "convformer_b36": (B, (3, 12, 18, 3), 99_882_616),
    "caformer_s18": (S, (3, 3, 9, 3), 26_341_656),
    "caformer_s36": (S, (3, 12, 18, 3), 39_297_102),
    "caformer_m36": (THIN, (3, 12, 18, 3), 56_204_878),
    "caformer_b36": (B, (3, 12, 18, 3), 98_753_614),
}
# what the models of a kind share, and the part of the image that evaluation keeps
KINDS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "poolformer": (FIRST, {"s12": 0.9, "s24": 0.9, "s36": 0.9, "m36": 0.95, "m48": 0.95}),
    "poolformerv2": (SECOND, {}),
    "convformer": ({"mixers": CONV}, {}),
    "caformer": ({"mixers": CONV_ATTENTION}, {}),
}
# Maps of 16, 8, 4 and 2 cells.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 8, 16, 16),
    "depth": (1, 1, 2, 1),
    "mlp_ratio": 2.0,
    "dim_head": 8,
    "kernel_size": 3,
}


def _entry(name: str) -> ModelEntry:
    kind, _, size = name.partition("_")
    dim, depth, parameters = MODELS[name]
    shared, crop = KINDS[kind]
    # the deep ones of the first kind start from smaller factors of the branches
    scale = {} if kind != "poolformer" else {"layer_scale": 1e-5 if size in ("s12", "s24") else 1e-6}
    return ModelEntry(
        name=name,
        architecture=MetaFormer,
        config={"image_size": 224, "num_classes": 1000, "dim": dim, "depth": depth, **shared, **scale},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": crop.get(size, 1.0)},
        hub_id=f"timm/{name}.sail_in1k",
        exceptions=FOLDED if kind == "caformer" else {**FOLDED, **NO_ATTENTION},
    )


ENTRIES = [_entry(name) for name in MODELS]
