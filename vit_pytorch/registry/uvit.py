"""The U-ViT at its authors' sizes (Bao et al. 2022): as classifiers, and their noise predictors by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_pytorch.layers.options import check_choice
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import TINY
from vit_pytorch.uvit import NoisePredictor, UViT

SIZES = {
    "small": {"dim": 512, "depth": 12, "heads": 8, "mlp_dim": 2048},
    "mid": {"dim": 768, "depth": 16, "heads": 12, "mlp_dim": 3072},
    "large": {"dim": 1024, "depth": 20, "heads": 16, "mlp_dim": 4096},
    "huge": {"dim": 1152, "depth": 28, "heads": 16, "mlp_dim": 4608},
}
PARAMETERS = {
    "uvit_small_patch2_32": 44_761_576,
    "uvit_small_patch4_64": 44_780_008,
    "uvit_mid_patch4_64": 130_902_760,
    "uvit_large_patch4_64": 286_777_320,
}
PREPARE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 1.0}


def _entry(name: str) -> ModelEntry:
    _, size, patch, image = name.split("_")
    grid = {"image_size": int(image), "patch_size": int(patch.removeprefix("patch"))}
    return ModelEntry(
        name=name,
        architecture=UViT,
        config={**grid, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[name],
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
    )


ENTRIES = [_entry(name) for name in PARAMETERS]


@dataclass(frozen=True, kw_only=True)
class PredictorEntry:
    """A noise predictor of the authors as data.

    Args:
        size: name of the size in `SIZES`.
        image_size: side of the image, or of the map that an autoencoder makes of it.
        patch_size: side of a patch.
        parameters: exact number of parameters.
        channels: channels of the image, or of the map.
        num_labels: number of labels; the map's models have one more than ImageNet, for none.
        final_conv: whether the last convolution is there.
    """

    size: str
    image_size: int
    patch_size: int
    parameters: int
    channels: int = 3
    num_labels: int = 0
    final_conv: bool = True

    def build(self, **overrides: Any) -> NoisePredictor:
        """Build the predictor, with some arguments of its U-ViT changed."""
        sizes = {
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "channels": self.channels,
            "num_classes": 0,
            **SIZES[self.size],
        }
        encoder = UViT(**{**sizes, **overrides})
        return NoisePredictor(encoder, num_labels=self.num_labels, final_conv=self.final_conv)


_MAP: dict[str, Any] = {"image_size": 32, "patch_size": 2, "channels": 4, "num_labels": 1001}
_LARGE_MAP = {**_MAP, "image_size": 64, "patch_size": 4}
_IMAGE_64: dict[str, Any] = {"image_size": 64, "patch_size": 4}
NOISE_PREDICTORS = {
    "cifar10_uvit_small": PredictorEntry(size="small", image_size=32, patch_size=2, parameters=44_255_328),
    "celeba64_uvit_small": PredictorEntry(size="small", **_IMAGE_64, parameters=44_292_228),
    "imagenet64_uvit_mid": PredictorEntry(size="mid", **_IMAGE_64, num_labels=1000, parameters=130_940_292),
    "imagenet64_uvit_large": PredictorEntry(
        size="large", **_IMAGE_64, num_labels=1000, parameters=286_827_652
    ),
    "imagenet256_uvit_large": PredictorEntry(size="large", **_MAP, parameters=286_763_172),
    "imagenet256_uvit_huge": PredictorEntry(size="huge", **_MAP, final_conv=False, parameters=500_832_016),
    "imagenet512_uvit_large": PredictorEntry(size="large", **_LARGE_MAP, parameters=286_861_524),
    "imagenet512_uvit_huge": PredictorEntry(
        size="huge", **_LARGE_MAP, final_conv=False, parameters=500_942_656
    ),
}


def create_noise_predictor(name: str, **overrides: Any) -> NoisePredictor:
    """Build a noise predictor by the name that its authors' configuration has.

    Args:
        name: one of `NOISE_PREDICTORS`.
        overrides: arguments of its `UViT` that shall differ.

    Raises:
        ValueError: where there is none of that name.
    """
    check_choice("name", name, NOISE_PREDICTORS)
    return NOISE_PREDICTORS[name].build(**overrides)
