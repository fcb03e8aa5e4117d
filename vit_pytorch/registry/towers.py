"""Vision towers of CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343, arXiv:2502.14786)."""

from typing import Any

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import SIZES, TINY
from vit_pytorch.vit import ViT

CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# name: parameters, timm's release, part of the image that evaluation keeps
CLIP_MODELS = {
    "vit_xsmall_patch16_clip_224": (8_402_920, "tinyclip_yfcc15m", 0.9),
    "vit_medium_patch32_clip_224": (39_942_632, "tinyclip_laion400m", 0.9),
    "vit_medium_patch16_clip_224": (38_838_248, "tinyclip_yfcc15m", 0.9),
    "vit_betwixt_patch32_clip_224": (61_724_520, "tinyclip_laion400m", 0.9),
    "vit_base_patch32_clip_224": (88_225_000, "laion2b_ft_in12k_in1k", 0.9),
    "vit_base_patch32_clip_256": (88_236_520, "datacompxl", 1.0),
    "vit_base_patch32_clip_384": (88_297_960, "laion2b_ft_in12k_in1k", 1.0),
    "vit_base_patch32_clip_448": (88_337_896, "laion2b_ft_in12k_in1k", 1.0),
    "vit_base_patch16_clip_224": (86_568_424, "laion2b_ft_in12k_in1k", 0.95),
    "vit_base_patch16_clip_384": (86_860_264, "laion2b_ft_in12k_in1k", 1.0),
    "vit_base_patch16_plus_clip_240": (117_537_384, "laion400m_e32", 1.0),
    "vit_large_patch14_clip_224": (304_204_776, "laion2b_ft_in12k_in1k", 1.0),
    "vit_large_patch14_clip_336": (304_532_456, "laion2b_ft_in12k_in1k", 1.0),
    "vit_huge_patch14_clip_224": (632_047_080, "laion2b_ft_in12k_in1k", 1.0),
    "vit_huge_patch14_clip_336": (632_456_680, "laion2b_ft_in12k_in1k", 1.0),
    "vit_huge_patch14_clip_378": (632_652_520, "dfn5b", 1.0),
    "vit_giant_patch14_clip_224": (1_012_612_840, "laion2b", 1.0),
    "vit_gigantic_patch14_clip_224": (1_844_442_344, "laion2b", 1.0),
    "vit_gigantic_patch14_clip_378": (1_845_229_416, "metaclip2_worldwide", 1.0),
    "vit_base_patch32_clip_quickgelu_224": (88_225_000, "openai", 0.9),
    "vit_base_patch16_clip_quickgelu_224": (86_568_424, "openai", 0.9),
    "vit_large_patch14_clip_quickgelu_224": (304_204_776, "openai", 1.0),
    "vit_large_patch14_clip_quickgelu_336": (304_532_456, "openai", 1.0),
    "vit_huge_patch14_clip_quickgelu_224": (632_047_080, "dfn5b", 1.0),
    "vit_huge_patch14_clip_quickgelu_378": (632_652_520, "dfn5b", 1.0),
    "vit_gigantic_patch14_clip_quickgelu_224": (1_844_442_344, "metaclip_2pt5b", 1.0),
}
SIGLIP_MODELS = {
    "vit_base_patch32_siglip_256": 95_321_320,
    "vit_base_patch16_siglip_224": 93_653_224,
    "vit_base_patch16_siglip_256": 93_699_304,
    "vit_base_patch16_siglip_384": 93_945_064,
    "vit_base_patch16_siglip_512": 94_289_128,
    "vit_large_patch16_siglip_256": 316_981_224,
    "vit_large_patch16_siglip_384": 317_308_904,
    "vit_large_patch16_siglip_512": 317_767_656,
    "vit_so400m_patch14_siglip_224": 428_833_704,
    "vit_so400m_patch14_siglip_378": 429_378_600,
    "vit_so400m_patch14_siglip_384": 429_378_600,
    "vit_so400m_patch16_siglip_256": 429_041_064,
    "vit_so400m_patch16_siglip_384": 429_409_704,
    "vit_so400m_patch16_siglip_512": 429_925_800,
    "vit_giantopt_patch16_siglip_256": 1_164_705_256,
    "vit_giantopt_patch16_siglip_384": 1_165_196_776,
    "vit_base_patch32_siglip_gap_256": 88_234_216,
    "vit_base_patch16_siglip_gap_224": 86_566_120,
    "vit_base_patch16_siglip_gap_256": 86_612_200,
    "vit_base_patch16_siglip_gap_384": 86_857_960,
    "vit_base_patch16_siglip_gap_512": 87_202_024,
    "vit_large_patch16_siglip_gap_256": 304_386_024,
    "vit_large_patch16_siglip_gap_384": 304_713_704,
    "vit_large_patch16_siglip_gap_512": 305_172_456,
    "vit_so400m_patch14_siglip_gap_224": 413_595_352,
    "vit_so400m_patch14_siglip_gap_378": 414_140_248,
    "vit_so400m_patch14_siglip_gap_384": 414_140_248,
    "vit_so400m_patch14_siglip_gap_448": 414_480_088,
    "vit_so400m_patch14_siglip_gap_896": 418_019_032,
    "vit_so400m_patch16_siglip_gap_256": 413_802_712,
    "vit_so400m_patch16_siglip_gap_384": 414_171_352,
    "vit_so400m_patch16_siglip_gap_512": 414_687_448,
    "vit_giantopt_patch16_siglip_gap_256": 1_136_375_272,
    "vit_giantopt_patch16_siglip_gap_384": 1_136_866_792,
}
# Those released with the second version alone have the other form of GELU.
TANH = {
    *("vit_base_patch32_256", "vit_large_patch16_512", "vit_so400m_patch16_256", "vit_so400m_patch16_384"),
    *("vit_so400m_patch16_512", "vit_giantopt_patch16_256", "vit_giantopt_patch16_384"),
}
# Those of the first version alone, whose patches leave six pixels of 384; and PaliGemma's, of other sizes.
RELEASES = {
    "vit_so400m_patch14_siglip_384": "webli",
    "vit_so400m_patch14_siglip_gap_384": "webli",
    "vit_so400m_patch14_siglip_gap_448": "pali_mix",
    "vit_so400m_patch14_siglip_gap_896": "pali_pt",
}
# What the projection of a tower that is not fine-tuned gives, in place of classes.
PROJECTIONS = {"large": 768, "huge": 1024, "giant": 1024, "gigantic": 1280, "plus": 640}
# Whole images, whatever their aspect ratio.
SQUASHED = {
    *("vit_base_patch16_clip_384", "vit_large_patch14_clip_336", "vit_huge_patch14_clip_336"),
    "vit_gigantic_patch14_clip_378",
}
LAION_LARGE = ("vit_large_patch14_clip_224", "vit_large_patch14_clip_336")


def _entry(name: str, parameters: int, **rest: Any) -> ModelEntry:
    _, size, patch, *kinds, image_size = name.split("_")
    config = {
        "image_size": int(image_size),
        "patch_size": int(patch.removeprefix("patch")),
        "num_classes": 0,
        **SIZES["plus" if "plus" in kinds else size],
    }
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={**config, **rest.pop("config")},
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, **rest.pop("tiny", {})},
        **rest,
    )


def _clip(name: str, parameters: int, tag: str, crop_pct: float) -> ModelEntry:
    act = "quickgelu" if "quickgelu" in name else "gelu"
    colours = HALF if name in LAION_LARGE else CLIP
    size = "plus" if "plus" in name else name.split("_")[1]
    classes = 1000 if tag.endswith("in1k") else PROJECTIONS.get(size, 512)
    return _entry(
        name,
        parameters,
        config={
            "num_classes": classes,
            "act": act,
            "norm_eps": 1e-5,
            "stem": {"kind": "linear", "pre_norm": True},
        },
        default_cfg={
            **colours,
            "interpolation": "bicubic",
            "crop_pct": crop_pct,
            "crop_mode": "squash" if name in SQUASHED else "center",
        },
        # The weights are one release, for either activation.
        hub_id=f"timm/{name.replace('quickgelu_', '')}.{tag}",
    )


def _siglip(name: str, parameters: int) -> ModelEntry:
    act = "gelu_tanh" if name.replace("gap_", "").replace("siglip_", "") in TANH else "gelu"
    pool, release = "mean" if "_gap_" in name else "map", RELEASES.get(name, "v2_webli")
    cropped = {"stem": {"kind": "linear", "crop": True}} if release == "webli" else {}
    whole = pool == "mean" and name in RELEASES
    return _entry(
        name,
        parameters,
        config={"pool": pool, "act": act, **cropped},
        tiny={"stem": "linear"} if cropped else {},
        default_cfg={**HALF, "interpolation": "bicubic", "crop_pct": 1.0 if whole else 0.9},
        hub_id=f"timm/{name}.{release}",
    )


ENTRIES = [
    *(_clip(name, *rest) for name, rest in CLIP_MODELS.items()),
    *(_siglip(name, parameters) for name, parameters in SIGLIP_MODELS.items()),
]
