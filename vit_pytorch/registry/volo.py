"""VOLO's models (Yuan et al. 2021), D1 to D5, each for images of 224 pixels and of its fine-tuning."""

from typing import Any

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.volo import VOLO

# channels, depth and heads of the Outlookers and of the transformer, other arguments
SIZES: dict[str, dict[str, Any]] = {
    "d1": {"dim": (192, 384), "depth": (4, 4, 8, 2), "heads": (6, 12)},
    "d2": {"dim": (256, 512), "depth": (6, 4, 10, 4), "heads": (8, 16)},
    "d3": {"dim": (256, 512), "depth": (8, 8, 16, 4), "heads": (8, 16)},
    "d4": {"dim": (384, 768), "depth": (8, 8, 16, 4), "heads": (12, 16)},
    "d5": {"dim": (384, 768), "depth": (12, 12, 20, 4), "heads": (12, 16), "mlp_ratio": 4, "stem_dim": 128},
}
# size and image: parameters, part of the image that is evaluated; timm's 1.15 of three is more than all of it
MODELS = {
    ("d1", 224): (26_632_040, 0.96),
    ("d1", 384): (26_777_960, 1.0),
    ("d2", 224): (58_678_336, 0.96),
    ("d2", 384): (58_872_896, 1.0),
    ("d3", 224): (86_325_072, 0.96),
    ("d3", 448): (86_626_128, 1.0),
    ("d4", 224): (192_961_520, 0.96),
    ("d4", 448): (193_413_104, 1.0),
    ("d5", 224): (295_455_584, 0.96),
    ("d5", 448): (295_907_168, 1.0),
    ("d5", 512): (296_091_488, 1.0),
}
TINY = {
    "image_size": 64,
    "num_classes": 7,
    "dim": (16, 32),
    "depth": (1, 1, 1),
    "heads": (2, 4),
    "stem_dim": 8,
    "mlp_ratio": 2,
}
TOKENS = "the classifier takes the class token and all cells; the embedding is the class token, as in timm"
EXCEPTIONS = {
    "features_then_head": TOKENS,
    "extractor_inputs": TOKENS,
    "intermediate_norm_and_prefix": "the class token joins after the stages: what is between them has no "
    "prefix, the features do",
}


def _entry(size: str, image_size: int) -> ModelEntry:
    parameters, crop_pct = MODELS[size, image_size]
    name = f"volo_{size}_{image_size}"
    return ModelEntry(
        name=name,
        architecture=VOLO,
        config={"image_size": image_size, "num_classes": 1000, **SIZES[size]},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": crop_pct},
        hub_id=f"timm/{name}.sail_in1k",
        exceptions=EXCEPTIONS,
    )


ENTRIES = [_entry(*model) for model in MODELS]
