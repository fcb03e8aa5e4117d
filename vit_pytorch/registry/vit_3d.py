"""The plain 3-D ViT as VideoMAE (arXiv:2203.12602) and V-JEPA 2 (arXiv:2506.09985) use it."""

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


# V-JEPA 2's encoders, and their classifiers of Something-Something v2 and Diving48
ENCODERS = {
    "vitl": SIZES["large"],
    "vith": SIZES["huge"],
    "vitg": {**SIZES["giant"], "heads": 22, "dim_head": 64},
}
CLASSES = {"ssv2": 174, "diving48": 48}
VJEPA2 = {
    "vjepa2_vitl_fpc64_256": 304_910_312,
    "vjepa2_vith_fpc64_256": 632_929_000,
    "vjepa2_vitg_fpc64_256": 1_013_582_952,
    "vjepa2_vitg_fpc64_384": 1_013_582_952,
    "vjepa2_vitl_fpc16_256_ssv2": 354_246_632,
    "vjepa2_vitl_fpc32_256_diving48": 354_246_632,
    "vjepa2_vitg_fpc64_384_ssv2": 1_106_831_976,
    "vjepa2_vitg_fpc32_384_diving48": 1_106_831_976,
}


def _vjepa2(name: str) -> ModelEntry:
    _, size, frames, image_size, *data = name.split("_")
    return ModelEntry(
        name=name,
        architecture=ViT3D,
        config={
            "image_size": int(image_size),
            "frames": int(frames.removeprefix("fpc")),
            "image_patch_size": 16,
            "frame_patch_size": 2,
            **ENCODERS[size],
            "num_classes": CLASSES[data[0]] if data else 0,
            "pool": "attentive" if data else "mean",
            "positions": "rope_tiled",
        },
        parameters=VJEPA2[name],
        tiny=TINY,
        default_cfg={**PREPARE, "crop_pct": 0.875},
        hub_id=f"facebook/{name.replace('_', '-')}",
    )


ENTRIES = [*map(_entry, PARAMETERS), *map(_vjepa2, VJEPA2)]
