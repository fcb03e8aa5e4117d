"""The XCiT paper's models: width and depth by patches of 16 and 8 at 224 and 384 pixels (2021, table 1)."""

from vit_pytorch.registry.entry import IMAGENET, ModelEntry
from vit_pytorch.xcit import XCiT

SIZES = {
    "nano_12": {
        "dim": 128,
        "depth": 12,
        "cls_depth": 2,
        "heads": 4,
        "mlp_dim": 512,
        "eta": 1.0,
        "tokens_norm": False,
    },
    "tiny_12": {"dim": 192, "depth": 12, "cls_depth": 2, "heads": 4, "mlp_dim": 768, "eta": 1.0},
    "small_12": {"dim": 384, "depth": 12, "cls_depth": 2, "heads": 8, "mlp_dim": 1536, "eta": 1.0},
    "tiny_24": {"dim": 192, "depth": 24, "cls_depth": 2, "heads": 4, "mlp_dim": 768, "eta": 1e-5},
    "small_24": {"dim": 384, "depth": 24, "cls_depth": 2, "heads": 8, "mlp_dim": 1536, "eta": 1e-5},
    "medium_24": {"dim": 512, "depth": 24, "cls_depth": 2, "heads": 8, "mlp_dim": 2048, "eta": 1e-5},
    "large_24": {"dim": 768, "depth": 24, "cls_depth": 2, "heads": 16, "mlp_dim": 3072, "eta": 1e-5},
}
PARAMETERS = {
    ("nano_12", 16): 3_053_224,
    ("nano_12", 8): 3_049_016,
    ("tiny_12", 16): 6_716_272,
    ("tiny_12", 8): 6_706_504,
    ("small_12", 16): 26_253_304,
    ("small_12", 8): 26_213_032,
    ("tiny_24", 16): 12_116_896,
    ("tiny_24", 8): 12_107_128,
    ("small_24", 16): 47_671_384,
    ("small_24", 8): 47_631_112,
    ("medium_24", 16): 84_395_752,
    ("medium_24", 8): 84_323_624,
    ("large_24", 16): 189_096_136,
    ("large_24", 8): 188_932_648,
}
PREPARE = {**IMAGENET, "interpolation": "bicubic", "crop_pct": 1.0}
TINY = {
    "image_size": 32,
    "patch_size": 4,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 48,
    "eta": 0.1,
}
EXCEPTIONS = {
    "intermediate_norm_and_prefix": "the class token joins after the last block that is an intermediate, "
    "and its stage changes the patches"
}


def _entry(size: str, patch: int, image_size: int) -> ModelEntry:
    name = f"xcit_{size}_p{patch}_{image_size}"
    return ModelEntry(
        name=name,
        architecture=XCiT,
        config={"image_size": image_size, "patch_size": patch, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[size, patch],
        tiny=TINY,
        default_cfg=PREPARE,
        hub_id=f"timm/{name}.{'fb_in1k' if image_size == 224 else 'fb_dist_in1k'}",
        exceptions=EXCEPTIONS,
    )


ENTRIES = [_entry(size, patch, pixels) for size in SIZES for patch in (16, 8) for pixels in (224, 384)]
