"""The plain 3-D ViT as VideoMAE uses it (Tong et al. 2022, arXiv:2203.12602), on 16 frames."""

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.registry.vit import SIZES
from vit_pytorch.vit_3d import ViT3D

PARAMETERS = {"small": 22_269_544, "base": 87_005_416, "large": 304_910_312, "huge": 632_929_000}
VIDEO = {"image_size": 224, "frames": 16, "image_patch_size": 16, "frame_patch_size": 2}
TINY_VIDEO = {"image_size": 16, "frames": 8, "image_patch_size": 4, "frame_patch_size": 2}
TINY = {**TINY_VIDEO, "num_classes": 7, "dim": 24, "depth": 2, "heads": 2, "dim_head": 12, "mlp_dim": 48}
PREPARE = {**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0}


def _entry(size: str) -> ModelEntry:
    return ModelEntry(
        name=f"videomae_{size}_patch16_224",
        architecture=ViT3D,
        config={
            **VIDEO,
            **SIZES[size],
            "num_classes": 400,
            "pool": "mean",
            "positions": "sequence",
            "fc_norm": True,
        },
        parameters=PARAMETERS[size],
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"MCG-NJU/videomae-{size}-finetuned-kinetics",
    )


ENTRIES = [_entry(size) for size in PARAMETERS]
