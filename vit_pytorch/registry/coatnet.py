"""CoAtNet's models (Dai et al. 2021, table 3) as timm builds them, and timm's own variants."""

from typing import Any

from vit_pytorch.coatnet import CoAtNet
from vit_pytorch.registry.entry import IMAGENET, NO_BATCH, ModelEntry
from vit_pytorch.registry.vit import PREPARE

# channels of the first stage, blocks, channels of the stem
SMALL: dict[str, Any] = {"dim": 96, "depth": (2, 3, 7, 2), "dim_conv_stem": (32, 64)}
MEDIUM: dict[str, Any] = {"dim": 96, "depth": (2, 6, 14, 2), "dim_conv_stem": (32, 64)}
LARGE: dict[str, Any] = {"dim": 128, "depth": (2, 6, 14, 2), "dim_conv_stem": (64, 128)}
HUGE: dict[str, Any] = {"dim": 192, "depth": (2, 6, 14, 2), "dim_conv_stem": (96, 192)}
PICO: dict[str, Any] = {"dim": 64, "depth": (2, 3, 5, 2), "dim_conv_stem": (32, 64)}
NANO: dict[str, Any] = {"dim": 64, "depth": (3, 4, 6, 3), "dim_conv_stem": (32, 64)}
# timm's own
OWN: dict[str, Any] = {"widen_last": True, "head_hidden": False}
OWN_CONV: dict[str, Any] = {"kind": "mbconv", "act": "silu", "expand_input": True}
# the convolutions of some of them
FIRST_CONV: dict[str, Any] = {**OWN_CONV, "bias": False, "norm_act": True, "gate_act": "relu"}
EARLY_CONV: dict[str, Any] = {**FIRST_CONV, "gate_first": True}
LATER_CONV: dict[str, Any] = {**FIRST_CONV, "gate_act": "silu"}
POOLED: dict[str, Any] = {"pooled": True}
NO_BIAS: dict[str, Any] = {**OWN, "shortcut_bias": False}
SCALED: dict[str, Any] = {**OWN, "layer_scale": 1e-6}
COMPUTED: dict[str, Any] = {"relative_dim": 512}
NARROWER: dict[str, Any] = {"relative_dim": 384}
NEXT: dict[str, Any] = {"conv": {"kind": "convnext", "layer_scale": 1e-5}, "bn_eps": 1e-6}

# name: parameters, timm's release, options, part of the image that evaluation keeps
MODELS: dict[str, tuple[int, str | None, dict[str, Any], float]] = {
    "coatnet_0_224": (25_036_820, None, {"dim": 96, "depth": (2, 3, 5, 2), "dim_conv_stem": 64}, 0.95),
    "coatnet_1_224": (42_225_776, None, {"dim": 96, "depth": (2, 6, 14, 2), "dim_conv_stem": 64}, 0.95),
    "coatnet_2_224": (74_684_744, None, {"dim": 128, "depth": (2, 6, 14, 2)}, 0.95),
    "coatnet_3_224": (166_966_264, None, {"dim": 192, "depth": (2, 6, 14, 2)}, 0.95),
    "coatnet_4_224": (275_425_288, None, {"dim": 192, "depth": (2, 12, 28, 2)}, 0.95),
    "coatnet_5_224": (
        687_472_008,
        None,
        {"dim": (256, 512, 1280, 2048), "depth": (2, 12, 28, 2), "dim_conv_stem": 192},
        0.95,
    ),
    "coatnet_pico_rw_224": (10_851_364, None, {**PICO, **OWN, "conv": OWN_CONV}, 0.95),
    "coatnet_nano_rw_224": (
        15_141_244,
        "sw_in1k",
        {**NANO, **OWN, "conv": {**OWN_CONV, **POOLED}},
        0.9,
    ),
    "coatnet_0_rw_224": (
        27_435_562,
        "sw_in1k",
        {**SMALL, **NO_BIAS, "conv": {**EARLY_CONV, **POOLED}},
        0.95,
    ),
    "coatnet_1_rw_224": (41_721_502, "sw_in1k", {**MEDIUM, **NO_BIAS, "conv": EARLY_CONV}, 0.95),
    "coatnet_2_rw_224": (73_868_400, "sw_in12k_ft_in1k", {**LARGE, **OWN, "conv": LATER_CONV}, 0.95),
    "coatnet_3_rw_224": (165_173_428, "sw_in12k", {**HUGE, **SCALED, "conv": LATER_CONV}, 0.95),
    "coatnet_bn_0_rw_224": (
        27_435_562,
        "sw_in1k",
        {**SMALL, **NO_BIAS, "conv": EARLY_CONV, "norm": "batch"},
        0.95,
    ),
    "coatnet_rmlp_nano_rw_224": (
        15_145_116,
        "sw_in1k",
        {**NANO, **OWN, **NARROWER, "conv": OWN_CONV},
        0.9,
    ),
    "coatnet_rmlp_0_rw_224": (27_446_074, None, {**SMALL, **OWN, **COMPUTED, "conv": FIRST_CONV}, 0.95),
    "coatnet_rmlp_1_rw_224": (
        41_691_982,
        "sw_in1k",
        {**MEDIUM, **NO_BIAS, **NARROWER, "conv": {**EARLY_CONV, **POOLED}, "padding": "max"},
        0.95,
    ),
    "coatnet_rmlp_1_rw2_224": (
        41_724_622,
        "sw_in12k_ft_in1k",
        {**MEDIUM, **OWN, **COMPUTED, "conv": FIRST_CONV},
        0.95,
    ),
    "coatnet_rmlp_2_rw_224": (
        73_881_264,
        "sw_in12k_ft_in1k",
        {**LARGE, **SCALED, **COMPUTED, "conv": LATER_CONV},
        0.95,
    ),
    "coatnet_rmlp_2_rw_384": (
        73_881_264,
        "sw_in12k_ft_in1k",
        {**LARGE, **SCALED, **COMPUTED, "conv": LATER_CONV},
        1.0,
    ),
    "coatnet_rmlp_3_rw_224": (165_152_788, None, {**HUGE, **SCALED, **COMPUTED, "conv": LATER_CONV}, 0.95),
    "coatnet_nano_cc_224": (
        13_757_328,
        None,
        {**NANO, **OWN, "conv": {**FIRST_CONV, **POOLED}, "layout": ("C", "C", "CT", "CT")},
        0.95,
    ),
    "coatnext_nano_rw_224": (14_701_244, "sw_in1k", {**NANO, **OWN, **NEXT}, 0.9),
    "test_coatnet": (
        575_480,
        None,
        {
            **OWN,
            "conv": {**OWN_CONV, **POOLED},
            "dim": (32, 64, 96, 128),
            "depth": (1, 1, 2, 1),
            "dim_conv_stem": (16, 32),
        },
        0.95,
    ),
}
# What is special of a model stays in its tiny one, where sizes are these.
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (8, 16, 24, 32),
    "depth": (1, 2, 2, 1),
    "dim_conv_stem": 8,
    "dim_head": 8,
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, options, crop_pct = MODELS[name]
    image_size = 160 if name == "test_coatnet" else int(name.rpartition("_")[2])
    special: dict[str, Any] = {"relative_dim": 20} if "relative_dim" in options else {}
    if "mbconv" in options.get("conv", {}).values():
        # the form that is least like the paper's stands for all
        special["conv"] = {**EARLY_CONV, **POOLED}
    return ModelEntry(
        name=name,
        architecture=CoAtNet,
        config={
            "image_size": image_size,
            "num_classes": 11821 if tag == "sw_in12k" else 1000,
            **options,
        },
        parameters=parameters,
        tiny={**TINY, **special},
        default_cfg={
            **PREPARE,
            **(IMAGENET if name == "coatnet_bn_0_rw_224" else {}),
            "crop_pct": crop_pct,
            "crop_mode": "center" if image_size < 384 else "squash",
        },
        hub_id=None if tag is None else f"timm/{name}.{tag}",
        exceptions=NO_BATCH if "relative_dim" in options or name.startswith("coatnext") else {},
    )


ENTRIES = [_entry(name) for name in MODELS]
