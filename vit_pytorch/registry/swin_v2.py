"""Swin Transformers V2 (Liu et al. 2021, tables 2 and 4), named by their windows and images."""

from vit_pytorch.registry.entry import FOLDED, IMAGENET, ModelEntry
from vit_pytorch.registry.swin import SIZES, TINY
from vit_pytorch.swin_v2 import SwinTransformerV2

# timm's name, window, parameters with 1000 classes
MODELS = (
    ("swinv2_tiny_window8_256", 8, 28_347_154),
    ("swinv2_tiny_window16_256", 16, 28_347_154),
    ("swinv2_small_window8_256", 8, 49_728_418),
    ("swinv2_small_window16_256", 16, 49_728_418),
    ("swinv2_base_window8_256", 8, 87_918_816),
    ("swinv2_base_window16_256", 16, 87_918_816),
    ("swinv2_base_window12_192", 12, 87_918_816),
    ("swinv2_base_window12to16_192to256", 16, 87_918_816),
    ("swinv2_base_window12to24_192to384", 24, 87_918_816),
    ("swinv2_large_window12_192", 12, 196_739_932),
    ("swinv2_large_window12to16_192to256", 16, 196_739_932),
    ("swinv2_large_window12to24_192to384", 24, 196_739_932),
)


def _entry(name: str, window: int, parameters: int) -> ModelEntry:
    size = int(name[-3:])
    only_22k = name.endswith("window12_192")
    tuned = {"pretrained_window_size": (12, 12, 12, 6)} if "to" in name else {}
    tag = "ms_in22k" if only_22k else "ms_in22k_ft_in1k" if tuned else "ms_in1k"
    return ModelEntry(
        name=name,
        architecture=SwinTransformerV2,
        config={
            "num_classes": 21841 if only_22k else 1000,
            **SIZES[name.split("_")[1]],
            "window_size": window,
            **tuned,
            "image_size": size,
        },
        parameters=parameters,
        tiny={**TINY, "pretrained_window_size": (3, 3, 2)} if tuned else TINY,
        default_cfg={**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0 if size == 384 else 0.9},
        hub_id=f"timm/{name}.{tag}",
        exceptions=FOLDED,
    )


ENTRIES = [_entry(*model) for model in MODELS]
