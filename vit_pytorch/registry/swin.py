"""Swin Transformers (Liu et al. 2021, section 3.3), and those that S3 found (arXiv:2111.14725)."""

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.swin import SwinTransformer

SIZES = {
    "tiny": {"dim": 96, "depth": (2, 2, 6, 2)},
    "small": {"dim": 96, "depth": (2, 2, 18, 2)},
    "base": {"dim": 128, "depth": (2, 2, 18, 2)},
    "large": {"dim": 192, "depth": (2, 2, 18, 2)},
}
# timm's name, arguments, parameters with 1000 classes
MODELS = (
    ("swin_tiny_patch4_window7_224", {**SIZES["tiny"], "window_size": 7}, 28_288_354),
    ("swin_small_patch4_window7_224", {**SIZES["small"], "window_size": 7}, 49_606_258),
    ("swin_base_patch4_window7_224", {**SIZES["base"], "window_size": 7}, 87_768_224),
    ("swin_base_patch4_window12_384", {**SIZES["base"], "window_size": 12}, 87_903_584),
    ("swin_large_patch4_window7_224", {**SIZES["large"], "window_size": 7}, 196_532_476),
    ("swin_large_patch4_window12_384", {**SIZES["large"], "window_size": 12}, 196_735_516),
    ("swin_s3_tiny_224", {**SIZES["tiny"], "window_size": (7, 7, 14, 7)}, 28_328_674),
    ("swin_s3_small_224", {**SIZES["small"], "window_size": (14, 14, 14, 7)}, 49_737_298),
    ("swin_s3_base_224", {"dim": 96, "depth": (2, 2, 30, 2), "window_size": (7, 7, 14, 7)}, 71_125_762),
)
# Maps of 12, 6 and 3 cells: windows that divide the map, that do not, and one that covers it.
TINY = {
    "image_size": 48,
    "num_classes": 7,
    "dim": 16,
    "depth": (2, 2, 2),
    "heads": (2, 2, 4),
    "window_size": 4,
    "mlp_ratio": 2,
}


def _entry(name: str, arguments: dict[str, object], parameters: int) -> ModelEntry:
    size = int(name[-3:])
    tag = "ms_in22k_ft_in1k" if "s3" not in name and "tiny" not in name else "ms_in1k"
    return ModelEntry(
        name=name,
        architecture=SwinTransformer,
        config={"num_classes": 1000, **arguments, "image_size": size},
        parameters=parameters,
        tiny=TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 0.9 if size == 224 else 1.0},
        hub_id=f"timm/{name}.{tag}",
        exceptions=FOLDED,
    )


ENTRIES = [_entry(*model) for model in MODELS]
