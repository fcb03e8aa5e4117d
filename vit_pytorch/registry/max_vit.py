"""MaxViT's models (Tu et al. 2022, table 1) at 224, 384 and 512 pixels, torchvision's, and timm's own."""

from typing import Any

from vit_pytorch.max_vit import MaxViT
from vit_pytorch.registry.entry import IMAGENET, NO_BATCH, ModelEntry
from vit_pytorch.registry.vit import PREPARE

SIZES = {
    "tiny": {"dim": 64, "depth": (2, 2, 5, 2), "dim_conv_stem": 64},
    "small": {"dim": 96, "depth": (2, 2, 5, 2), "dim_conv_stem": 64},
    "base": {"dim": 96, "depth": (2, 6, 14, 2), "dim_conv_stem": 64},
    "large": {"dim": 128, "depth": (2, 6, 14, 2), "dim_conv_stem": 128},
    "xlarge": {"dim": 192, "depth": (2, 6, 14, 2), "dim_conv_stem": 192},
}
PARAMETERS = {
    ("tiny", 224): 30_916_528,
    ("tiny", 384): 30_977_008,
    ("tiny", 512): 31_049_584,
    ("small", 224): 68_927_956,
    ("small", 384): 69_018_676,
    ("small", 512): 69_127_540,
    ("base", 224): 119_467_708,
    ("base", 384): 119_653_468,
    ("base", 512): 119_876_380,
    ("large", 224): 211_785_560,
    ("large", 384): 212_033_240,
    ("large", 512): 212_330_456,
    ("xlarge", 224): 474_951_952,
    ("xlarge", 384): 475_323_472,
    ("xlarge", 512): 475_769_296,
}
TORCHVISION = {
    "act": "gelu",
    "padding": "symmetric",
    "project_shortcuts": True,
    "scale_by": "dim",
    "stem_bias": False,
    "head_bias": False,
}
# timm's own, which came before the authors' program.
OWN: dict[str, Any] = {
    "mbconv_shrinkage_rate": 1 / 16,
    "act": "gelu",
    "padding": "mixed",
    "stem_bias": "none",
    "norm_eps": 1e-6,
    "bn_eps": 1e-5,
    "conv": {"kind": "mbconv", "act": "silu", "bias": False, "expand_input": True},
    "head_hidden": False,
}
COMPUTED: dict[str, Any] = {**OWN, "relative_dim": 512}
NARROW: dict[str, Any] = {"depth": (2, 2, 5, 2), "dim_conv_stem": (32, 64)}
NANO = {"dim": 64, "depth": (1, 2, 3, 1), "dim_conv_stem": (32, 64)}
PICO = {"dim": 32, "depth": (2, 2, 5, 2), "dim_conv_stem": (24, 32)}
WIDE = {"dim": 96, "depth": (2, 6, 14, 2), "dim_conv_stem": (32, 64), "head_hidden": True}
SCALED = {"dim": 96, **NARROW, "layer_scale": 1e-6}
# MaxxViT: blocks of ConvNeXt
NEXT: dict[str, Any] = {
    "act": "gelu",
    "padding": "mixed",
    "stem_bias": "none",
    "norm_eps": 1e-6,
    "bn_eps": 1e-6,
    "conv": "convnext",
    "head_hidden": False,
    "layer_scale": 1e-6,
    "relative_dim": 512,
}
# MaxxViT-V2: attention within grids alone
NEXT2: dict[str, Any] = {**NEXT, "attention": "grid"}
BASE2: dict[str, Any] = {"dim": 128, "depth": (2, 6, 12, 2), "dim_conv_stem": (64, 128)}
# name: parameters, timm's release, options, part of the image that evaluation keeps
TIMMS: dict[str, tuple[int, str | None, dict[str, Any], float]] = {
    "maxvit_pico_rw_256": (7_457_996, None, {**OWN, **PICO}, 0.95),
    "maxvit_nano_rw_256": (15_451_148, "sw_in1k", {**OWN, **NANO}, 0.95),
    "maxvit_tiny_rw_224": (29_057_312, "sw_in1k", {**OWN, "dim": 64, **NARROW}, 0.95),
    "maxvit_tiny_rw_256": (29_066_720, None, {**OWN, "dim": 64, **NARROW}, 0.95),
    "maxvit_rmlp_pico_rw_256": (7_515_980, "sw_in1k", {**COMPUTED, **PICO}, 0.95),
    "maxvit_rmlp_nano_rw_256": (15_501_452, "sw_in1k", {**COMPUTED, **NANO}, 0.95),
    "maxvit_rmlp_tiny_rw_256": (29_148_896, "sw_in1k", {**COMPUTED, "dim": 64, **NARROW}, 0.95),
    "maxvit_rmlp_small_rw_224": (64_895_044, "sw_in1k", {**COMPUTED, **SCALED}, 0.9),
    "maxvit_rmlp_small_rw_256": (64_895_044, None, {**COMPUTED, **SCALED}, 0.95),
    "maxvit_rmlp_base_rw_224": (116_135_788, "sw_in12k_ft_in1k", {**COMPUTED, **WIDE}, 0.95),
    "maxvit_rmlp_base_rw_384": (116_135_788, "sw_in12k_ft_in1k", {**COMPUTED, **WIDE}, 1.0),
    "test_maxvit": (
        1_093_252,
        None,
        {**OWN, "dim": (32, 64, 96, 128), "depth": (1, 1, 1, 1), "dim_conv_stem": (16, 32)},
        0.95,
    ),
    "maxvit_tiny_pm_256": (
        30_089_344,
        None,
        {**OWN, "dim": 64, **NARROW, "attention": "side_by_side"},
        0.95,
    ),
    "maxxvit_rmlp_nano_rw_256": (16_779_628, "sw_in1k", {**NEXT, **NANO}, 0.95),
    "maxxvit_rmlp_tiny_rw_256": (29_636_528, None, {**NEXT, "dim": 64, **NARROW}, 0.95),
    "maxxvit_rmlp_small_rw_256": (
        66_010_516,
        "sw_in1k",
        {**NEXT, "dim": 96, "depth": (2, 2, 5, 2), "dim_conv_stem": (48, 96)},
        0.95,
    ),
    "maxxvitv2_nano_rw_256": (
        23_696_611,
        "sw_in1k",
        {**NEXT2, "dim": 96, "depth": (1, 2, 3, 1), "dim_conv_stem": (48, 96), "relative_dim": None},
        0.95,
    ),
    "maxxvitv2_rmlp_base_rw_224": (116_092_512, "sw_in12k_ft_in1k", {**NEXT2, **BASE2}, 0.95),
    "maxxvitv2_rmlp_base_rw_384": (116_092_512, "sw_in12k_ft_in1k", {**NEXT2, **BASE2}, 1.0),
    "maxxvitv2_rmlp_large_rw_224": (
        215_417_166,
        None,
        {
            **NEXT2,
            "dim": 160,
            "depth": (2, 6, 16, 2),
            "dim_conv_stem": (80, 160),
            "head_hidden": True,
        },
        0.95,
    ),
}
TINY = {
    "image_size": 128,
    "num_classes": 7,
    "dim": 8,
    "depth": (1, 2),
    "dim_conv_stem": 8,
    "dim_head": 4,
    "window_size": 4,
}


def crop_mode(pixels: int) -> str:
    """Return how evaluation crops images: the largest ones see all of a picture."""
    return "center" if pixels < 384 else "squash"


def _entry(size: str, pixels: int) -> ModelEntry:
    name = f"maxvit_{size}_tf_{pixels}"
    weights = "in1k" if size in ("tiny", "small") else "in21k_ft_in1k"
    if pixels == 224:
        weights = "in21k" if size == "xlarge" else "in1k"
    return ModelEntry(
        name=name,
        architecture=MaxViT,
        config={"image_size": pixels, "num_classes": 21843 if weights == "in21k" else 1000, **SIZES[size]},
        parameters=PARAMETERS[size, pixels],
        tiny=TINY,
        default_cfg={
            **(IMAGENET if weights == "in1k" and pixels == 224 else {}),
            "interpolation": "bicubic",
            "crop_pct": 0.95 if pixels == 224 else 1.0,
            "crop_mode": crop_mode(pixels),
        },
        hub_id=f"timm/{name}.{weights}",
    )


def _timms(name: str) -> ModelEntry:
    parameters, tag, options, crop_pct = TIMMS[name]
    image_size = 160 if name == "test_maxvit" else int(name.split("_")[-1])
    tiny = {
        **{key: value for key, value in options.items() if key not in TINY},
        "relative_dim": 20 if options.get("relative_dim") else None,
        # what does not change with these stays out of the tests of each promise
        "layer_scale": 1e-6 if options.get("conv") == "convnext" else None,
        "head_hidden": False,
    }
    return ModelEntry(
        name=name,
        architecture=MaxViT,
        config={"image_size": image_size, "num_classes": 1000, **options},
        parameters=parameters,
        tiny={**TINY, **tiny},
        default_cfg={**PREPARE, "crop_pct": crop_pct, "crop_mode": crop_mode(image_size)},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
        exceptions=NO_BATCH if options.get("relative_dim") or options["conv"] == "convnext" else {},
    )


ENTRIES = [
    *(_entry(size, pixels) for size in SIZES for pixels in (224, 384, 512)),
    *map(_timms, TIMMS),
    ModelEntry(
        name="maxvit_t",
        architecture=MaxViT,
        config={"image_size": 224, "num_classes": 1000, **SIZES["tiny"], **TORCHVISION},
        parameters=30_919_624,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0},
    ),
]
