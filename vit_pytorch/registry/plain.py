"""Plain ViTs that timm names after what they were trained for, or by how they pool.

I-JEPA's (arXiv:2301.08243), FlexiViT's (arXiv:2212.08013), EVA's of ViT-L (arXiv:2211.07636), TIPS's of the
second version (arXiv:2410.16512), RADIO's (arXiv:2312.06709), InternViT (arXiv:2312.14238), and timm's own.
"""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.vit import ViT

BARE: dict[str, Any] = {"positions": {"kind": "learned", "class_token": False}}
MEAN: dict[str, Any] = {"pool": "mean"}
ENCODER: dict[str, Any] = {**MEAN, "num_classes": 0}
NORMED_MEAN: dict[str, Any] = {"pool": "mean", "class_token": True, "head": {"kind": "linear", "norm": True}}
GAP: dict[str, Any] = {"pool": "mean", "qkv_bias": False, "layer_scale": 1e-6}
PLUS: dict[str, Any] = {**SIZES["plus"], "layer_scale": 1e-5}
TIPS: dict[str, Any] = {**BARE, "layer_scale": 1.0, "num_registers": 1}
RADIO: dict[str, Any] = {**BARE, "num_registers": 7, "head": {"kind": "linear", "norm": None}}
RADIO_SCALED = {**RADIO, "layer_scale": 1e-5}
RADIO_4 = {**RADIO, "num_registers": 9}
# Norms after the branches, in place of LayerScale; of both branches at once, with those of queries and keys.
POST: dict[str, Any] = {
    "pool": "mean",
    "qkv_bias": False,
    "head": {"kind": "linear", "norm": True},
    "norm": {"kind": "layer", "post": True, "gain": 1e-5},
}
PARALLEL: dict[str, Any] = {
    **BARE,
    "stem": {"kind": "linear", "pre_norm": True},
    "norm": {"kind": "rms", "shared": True},
    "qkv_bias": False,
    "qk_norm": True,
}
INTERN: dict[str, Any] = {
    "positions": {"kind": "learned", "dynamic_img_size": True},
    "layer_scale": 0.1,
    "head": {"kind": "linear", "norm": None},
}
# What the tiny models of other names have.
PLAIN = {
    "positions": "learned",
    "stem": "linear",
    "norm": "layer",
    "layer_scale": None,
    "num_registers": 0,
    "head": "linear",
    "qk_norm": False,
}
UNCHANGED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
# name: parameters, timm's release, what it differs in from the ViT of its size, and how images are prepared
MODELS: dict[str, tuple[int, str | None, dict[str, Any], dict[str, Any]]] = {
    "flexivit_small": (22_061_416, "1200ep_in1k", BARE, {"crop_pct": 0.95}),
    "flexivit_base": (86_589_160, "1200ep_in1k", BARE, {"crop_pct": 0.95}),
    "flexivit_large": (304_355_304, "1200ep_in1k", BARE, {"crop_pct": 0.95}),
    "eva_large_patch14_196": (304_142_312, "in22k_ft_in22k_in1k", NORMED_MEAN, {**CLIP, "crop_pct": 1.0}),
    "eva_large_patch14_336": (
        304_531_432,
        "in22k_ft_in22k_in1k",
        NORMED_MEAN,
        {**CLIP, "crop_pct": 1.0, "crop_mode": "squash"},
    ),
    "vit_base_patch16_224_miil": (
        86_540_008,
        "in21k",
        {"qkv_bias": False, "num_classes": 11221},
        {**UNCHANGED, "interpolation": "bilinear", "crop_pct": 0.875},
    ),
    "vit_base_patch14_reg1_tipsv2": (87_083_752, "webli", TIPS, {**UNCHANGED, "crop_pct": 1.0}),
    "vit_large_patch14_reg1_tipsv2": (305_039_336, "webli", TIPS, {**UNCHANGED, "crop_pct": 1.0}),
    "vit_so400m_patch14_reg1_tipsv2": (414_544_600, "webli", TIPS, {**UNCHANGED, "crop_pct": 1.0}),
    "vit_giant_patch14_reg1_tipsv2": (
        1_137_486_312,
        "webli",
        {**TIPS, **SIZES["giant2"], "dim_head": 64, "act": "swiglu"},
        {**UNCHANGED, "crop_pct": 1.0},
    ),
    "vit_medium_patch16_gap_240": (38_845_416, "sw_in12k", {**GAP, "num_classes": 11821}, {"crop_pct": 0.95}),
    "vit_medium_patch16_gap_256": (38_861_288, "sw_in12k_ft_in1k", GAP, {"crop_pct": 0.95}),
    "vit_medium_patch16_gap_384": (
        39_025_128,
        "sw_in12k_ft_in1k",
        GAP,
        {"crop_pct": 0.95, "crop_mode": "squash"},
    ),
    "vit_betwixt_patch16_gap_256": (60_372_840, None, GAP, {"crop_pct": 0.95}),
    "vit_base_patch16_gap_224": (86_566_120, None, {**MEAN, "heads": 16, "dim_head": 48}, {}),
    # timm converts I-JEPA's weights from the authors' files.
    "vit_huge_patch14_gap_224": (632_043_240, None, ENCODER, IMAGENET),
    "vit_huge_patch16_gap_448": (632_949_480, None, ENCODER, {**IMAGENET, "crop_pct": 1.0}),
    "vit_giant_patch16_gap_224": (1_012_777_576, None, ENCODER, IMAGENET),
    "vit_base_patch16_radio_v3": (87_225_064, "c_radio", RADIO_SCALED, {**CLIP, "crop_pct": 1.0}),
    "vit_large_patch16_radio_v3": (305_227_752, "c_radio", RADIO_SCALED, {**CLIP, "crop_pct": 1.0}),
    "vit_huge_patch16_radio_v3": (633_264_360, "c_radio", RADIO, {**CLIP, "crop_pct": 1.0}),
    "vit_giant_patch16_radio_v3": (
        1_137_564_136,
        "c_radio",
        {**RADIO, **SIZES["giant2"], "dim_head": 64, "mlp_dim": 6144},
        {**CLIP, "crop_pct": 1.0},
    ),
    "vit_so400m_patch16_radio_v4": (414_696_664, "c_radio", RADIO_4, {**CLIP, "crop_pct": 1.0}),
    "vit_huge_patch16_radio_v4": (633_266_920, "c_radio", RADIO_4, {**CLIP, "crop_pct": 1.0}),
    "vit_intern300m_patch14_448": (
        305_037_288,
        "ogvl_dist",
        {**SIZES["large"], **INTERN, "num_classes": 0},
        {**IMAGENET, "crop_pct": 1.0},
    ),
    "vit_base_patch16_rpn_224": (86_538_472, "sw_in1k", POST, {}),
    "vit_base_patch16_xp_224": (86_512_360, None, PARALLEL, {}),
    "vit_large_patch14_xp_224": (304_057_320, None, PARALLEL, {}),
    "vit_huge_patch14_xp_224": (631_802_600, None, PARALLEL, {}),
    "vit_base_patch16_plus_240": (117_557_992, None, PLUS, {"crop_pct": 0.95}),
    "vit_base_patch32_plus_256": (119_478_120, None, PLUS, {"crop_pct": 0.95}),
}
SIDES = {
    "flexivit": (240, 16),
    "tipsv2": (448, 14),
    "miil": (224, 16),
    "v3": (512, 16),
    "v4": (512, 16),
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, options, prepare = MODELS[name]
    words = name.split("_")
    special = {"radio", "xp", "rpn", "intern300m"}.intersection(words)
    sides = next((SIDES[word] for word in (words[0], words[-1]) if word in SIDES), None)
    image, patch = sides or (int(words[-1]), int(words[2].removeprefix("patch")))
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": image,
            "patch_size": patch,
            "num_classes": 0 if words[-1] in ("tipsv2", "v3", "v4") else 1000,
            **SIZES.get(words[1], {}),
            **options,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, **(PLAIN if special else {})},
        default_cfg={**PREPARE, **prepare},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
    )


ENTRIES = [_entry(name) for name in MODELS]
