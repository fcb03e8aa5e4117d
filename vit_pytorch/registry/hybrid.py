"""The hybrid models of the ViT paper and of arXiv:2106.10270: a ResNet's map in front of the transformer."""

from vit_pytorch.hybrid import HybridViT
from vit_pytorch.registry.cct import CIFAR_10
from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY

# of the R, whose stem is all, patches of 8 x 8 cells
RESNETS: dict[tuple[str, str], tuple[int, ...]] = {
    ("r", "s16"): (),
    ("r26", "s32"): (2, 2, 2, 2),
    ("r50", "s16"): (3, 4, 9),
    ("r50", "s32"): (3, 4, 6, 3),
}
# name: parameters, timm's release
MODELS = {
    "vit_tiny_r_s16_p8_224": (6_337_704, "augreg_in21k_ft_in1k"),
    "vit_tiny_r_s16_p8_384": (6_355_944, "augreg_in21k_ft_in1k"),
    "vit_small_r26_s32_224": (36_431_912, "augreg_in21k_ft_in1k"),
    "vit_small_r26_s32_384": (36_468_392, "augreg_in21k_ft_in1k"),
    "vit_base_r26_s32_224": (101_383_976, None),
    "vit_base_r50_s16_224": (98_659_112, "orig_in21k"),
    "vit_base_r50_s16_384": (98_950_952, "orig_in21k_ft_in1k"),
    "vit_large_r50_s32_224": (328_994_856, "augreg_in21k_ft_in1k"),
    "vit_large_r50_s32_384": (329_092_136, "augreg_in21k_ft_in1k"),
}
SMALL = {"image_size": 48, "patch_size": 1, "num_classes": 7, "resnet_depths": (1, 1), "resnet_width": 32}


def _entry(name: str) -> ModelEntry:
    parameters, tag = MODELS[name]
    _, size, network, stride, *patch, image_size = name.split("_")
    cells = int(patch[0].removeprefix("p")) if patch else 1
    return ModelEntry(
        name=name,
        architecture=HybridViT,
        config={
            "image_size": int(image_size),
            "patch_size": cells,
            "num_classes": 0 if tag == "orig_in21k" else 1000,
            **SIZES[size],
            "resnet_depths": RESNETS[network, stride],
        },
        parameters=parameters,
        tiny={**TINY, **SMALL, **({"patch_size": 2, "resnet_depths": ()} if patch else {})},
        default_cfg={**PREPARE, "crop_pct": 1.0 if image_size == "384" else 0.9},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
        exceptions={"jit_trace": "PyTorch's group norm compares the size of the batch with a number"},
    )


# timm's, without published weights
SMALLER = {"dim": 768, "depth": 8, "heads": 8, "dim_head": 96, "mlp_dim": 2304}
# name: parameters, sizes, blocks
DEEP: dict[str, tuple[int, dict[str, int], tuple[int, ...]]] = {
    "vit_small_resnet26d_224": (63_608_392, SMALLER, (2, 2, 2, 2)),
    "vit_small_resnet50d_s16_224": (57_531_976, SMALLER, (3, 4, 6)),
    "vit_base_resnet26d_224": (101_403_208, SIZES["base"], (2, 2, 2, 2)),
    "vit_base_resnet50d_224": (110_965_064, SIZES["base"], (3, 4, 6, 3)),
}


def _deep(name: str) -> ModelEntry:
    parameters, sizes, depths = DEEP[name]
    return ModelEntry(
        name=name,
        architecture=HybridViT,
        config={"image_size": 224, "num_classes": 1000, **sizes, "resnet_depths": depths, "resnet": "d"},
        parameters=parameters,
        tiny={**TINY, **SMALL},
        default_cfg={**PREPARE, **IMAGENET},
    )


# MobileCLIP's image encoder (arXiv:2311.17049), whose classes are the dimensions that texts share
MOBILE_CLIP = ModelEntry(
    name="vit_base_mci_224",
    architecture=HybridViT,
    config={
        "image_size": 224,
        "num_classes": 512,
        **SIZES["base"],
        "resnet": "patches",
        "resnet_depths": (),
        "resnet_width": 192,
        "positions": {"kind": "learned", "class_token": False},
    },
    parameters=86_724_328,
    tiny={**TINY, "image_size": 64, "patch_size": 1, "num_classes": 7, "resnet_width": 8},
    default_cfg={**PREPARE, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    hub_id="apple/mobileclip_b_lt_timm",
    releases={
        "apple_mclip": "apple/mobileclip_b_timm",
        "apple_mclip_lt": "apple/mobileclip_b_lt_timm",
    },
)

# five convolutions, then 2 x 2 cells of their map to a token; no paper's, for 32 x 32 photographs
WHITENED_HYBRID = ModelEntry(
    name="vit_whitened_32",
    architecture=HybridViT,
    config={
        "image_size": 32,
        "patch_size": 2,
        "num_classes": 10,
        "dim": 192,
        "depth": 2,
        "heads": 3,
        "mlp_dim": 576,
        "resnet": "whitened",
        "resnet_depths": (2, 2),
        "pool": "mean",
    },
    parameters=1_929_896,
    tiny={**TINY, **SMALL, "image_size": 32, "patch_size": 2, "resnet_width": 8},
    default_cfg={**CIFAR_10, "interpolation": "bicubic"},
)

ENTRIES = [*map(_entry, MODELS), *map(_deep, DEEP), MOBILE_CLIP, WHITENED_HYBRID]
