"""The official code's named models: layers, kernel x convolutions, image size, positions, data."""

from __future__ import annotations

from typing import Any

from vit_pytorch.cct import CCT, SIZES
from vit_pytorch.registry.entry import IMAGENET, ModelEntry

PARAMETERS = {
    "cct_2_3x2_32": 411_433,
    "cct_2_3x2_32_sine": 403_241,
    "cct_4_3x2_32": 609_833,
    "cct_4_3x2_32_sine": 601_641,
    "cct_6_3x1_32": 3_488_233,
    "cct_6_3x1_32_sine": 3_422_697,
    "cct_6_3x2_32": 3_581_353,
    "cct_6_3x2_32_sine": 3_564_969,
    "cct_7_3x1_32": 4_014_569,
    "cct_7_3x1_32_sine": 3_949_033,
    "cct_7_3x1_32_c100": 4_014_569,
    "cct_7_3x1_32_sine_c100": 3_949_033,
    "cct_7_3x2_32": 4_107_689,
    "cct_7_3x2_32_sine": 4_091_305,
    "cct_7_7x2_224": 4_804_521,
    "cct_7_7x2_224_sine": 4_754_345,
    "cct_14_7x2_224": 22_367_273,
    "cct_14_7x2_384": 22_513_193,
    "cct_14_7x2_384_fl": 22_513_193,
}
TOKENIZER = {
    3: {"kernel_size": 3, "stride": 1, "padding": 1},
    7: {"kernel_size": 7, "stride": 2, "padding": 3},
}
CIFAR_10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), "crop_pct": 1.0}
CIFAR_100 = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761), "crop_pct": 1.0}
FLOWERS = {"mean": (0.4353, 0.3773, 0.2872), "std": (0.2966, 0.2455, 0.2698), "crop_pct": 1.0}
PREPARE = {**IMAGENET, "crop_pct": 0.9}
TINY = {
    "img_size": 32,
    "embedding_dim": 24,
    "n_conv_layers": 2,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 7,
    **TOKENIZER[3],
    "attn_dropout": 0.0,
    "drop_path": 0.0,
}


def _entry(name: str) -> ModelEntry:
    layers, tokenizer, size, *rest = name.split("_")[1:]
    kernel, convs = map(int, tokenizer.split("x"))
    classes, prepare = {
        "32": (100, CIFAR_100) if "c100" in rest else (10, CIFAR_10),
        "224": (1000, PREPARE) if layers == "14" else (102, FLOWERS),
        "384": (102, FLOWERS) if "fl" in rest else (1000, PREPARE),
    }[size]
    config: dict[str, Any] = {
        "img_size": int(size),
        **SIZES[int(layers)],
        "n_conv_layers": convs,
        **TOKENIZER[kernel],
        "num_classes": classes,
        "positional_embedding": "sine" if "sine" in rest else "learnable",
    }
    return ModelEntry(
        name=name,
        architecture=CCT,
        config=config,
        parameters=PARAMETERS[name],
        tiny=TINY,
        default_cfg={**prepare, "interpolation": "bicubic"},
        exceptions={"indivisible_size": "its convolutions take images of any size"},
    )


ENTRIES = [_entry(name) for name in PARAMETERS]
