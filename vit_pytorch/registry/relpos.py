"""timm's ViTs whose only positions are biases that a network computes from logarithms of offsets."""

from typing import Any

from vit_pytorch.registry.entry import NO_BATCH, ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.vit import ViT

SCALED: dict[str, Any] = {"pool": "mean", "qkv_bias": False, "layer_scale": 1e-6}
NORMED: dict[str, Any] = {**SCALED, "head": {"kind": "linear", "norm": True}}
POST: dict[str, Any] = {
    "pool": "mean",
    "qkv_bias": False,
    "norm": {"kind": "layer", "post": True, "gain": 1e-6},
}
SHARED: dict[str, Any] = {"per_layer": False}
AS_THE_HEAD = {
    "group_matcher": "a network of biases that all layers share learns at the head's rate, as in timm"
}
UNSEEN = {
    "every_parameter_has_a_gradient": "the class token alone is classified, and the last block's biases act "
    "between patches"
}
SMALLEST = {"image_size": 160, "dim": 96, "depth": 9, "heads": 3, "dim_head": 32, "mlp_dim": 192}
# name: parameters, timm's release, options, and settings of the positions
MODELS: dict[str, tuple[int, str | None, dict[str, Any], dict[str, Any]]] = {
    "vit_relpos_small_patch16_224": (21_983_920, "sw_in1k", NORMED, {}),
    "vit_relpos_medium_patch16_224": (38_747_208, "sw_in1k", NORMED, {}),
    "vit_relpos_base_patch16_224": (86_429_560, "sw_in1k", NORMED, {}),
    "vit_srelpos_small_patch16_224": (21_973_486, "sw_in1k", SCALED, {**SHARED, "dim": 384}),
    "vit_srelpos_medium_patch16_224": (38_735_856, "sw_in1k", SCALED, {**SHARED, "dim": 512}),
    "vit_relpos_medium_patch16_cls_224": (38_764_616, "sw_in1k", {**SCALED, "pool": "cls"}, {"dim": 256}),
    "vit_relpos_base_patch16_cls_224": (86_430_328, None, {**SCALED, "pool": "cls"}, {}),
    "vit_relpos_base_patch16_clsgap_224": (86_430_328, "sw_in1k", {**NORMED, "class_token": True}, {}),
    "vit_relpos_small_patch16_rpn_224": (21_974_704, None, POST, {}),
    "vit_relpos_medium_patch16_rpn_224": (38_734_920, "sw_in1k", POST, {}),
    "vit_relpos_base_patch16_rpn_224": (86_411_128, None, POST, {}),
    "vit_relpos_base_patch16_plus_240": (
        117_380_880,
        None,
        {**SIZES["plus"], **SCALED, "qkv_bias": True},
        {},
    ),
    "vit_relpos_base_patch32_plus_rpn_256": (
        119_423_760,
        "sw_in1k",
        {**SIZES["plus"], **POST, "qkv_bias": True},
        {},
    ),
    "test_vit_relpos": (850_147, None, {**SMALLEST, **NORMED}, {}),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, options, positions = MODELS[name]
    words = ("tiny", "patch16", "160") if name == "test_vit_relpos" else tuple(name.split("_")[2:])
    size, patch, *_, image_size = words
    inside = {"kind": "relative_log", "per_layer": True, **positions}
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": int(image_size),
            "patch_size": int(patch.removeprefix("patch")),
            "num_classes": 1000,
            **SIZES[size],
            "positions": inside,
            **options,
        },
        parameters=parameters,
        # With a class token, and one of each kind of sharing.
        tiny={
            **TINY,
            "num_classes": 7,
            "class_token": True,
            "layer_scale": None,
            "norm": "layer",
            "positions": {"kind": "relative_log", "per_layer": inside["per_layer"], "dim": 20},
        },
        default_cfg={**PREPARE, "crop_pct": 0.95 if name == "test_vit_relpos" else 0.9},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
        exceptions={
            **NO_BATCH,
            **({} if inside["per_layer"] else AS_THE_HEAD),
            **(UNSEEN if options["pool"] == "cls" else {}),
        },
    )


ENTRIES = [_entry(name) for name in MODELS]
