"""AIMv2's vision encoders (E. Fini et al. 2024, arXiv:2411.14402)."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.registry.vit import TINY
from vit_pytorch.vit import ViT

SHAPES = {
    "large": {"dim": 1024, "heads": 8, "mlp_dim": 2816},
    "huge": {"dim": 1536, "heads": 12, "mlp_dim": 4096},
    "1b": {"dim": 2048, "heads": 16, "mlp_dim": 5632},
    "3b": {"dim": 3072, "heads": 24, "mlp_dim": 8192},
}
# name: parameters
MODELS = {
    "aimv2_large_patch14_224": 310_222_824,
    "aimv2_large_patch14_336": 310_550_504,
    "aimv2_large_patch14_448": 311_009_256,
    "aimv2_huge_patch14_224": 682_388_968,
    "aimv2_huge_patch14_336": 682_880_488,
    "aimv2_huge_patch14_448": 683_568_616,
    "aimv2_1b_patch14_224": 1_237_007_336,
    "aimv2_1b_patch14_336": 1_237_662_696,
    "aimv2_1b_patch14_448": 1_238_580_200,
    "aimv2_3b_patch14_224": 2_723_731_432,
    "aimv2_3b_patch14_336": 2_724_714_472,
    "aimv2_3b_patch14_448": 2_726_090_728,
}


def _entry(name: str) -> ModelEntry:
    _, size, _, image_size = name.split("_")
    return ModelEntry(
        name=name,
        architecture=ViT,
        config={
            "image_size": int(image_size),
            "patch_size": 14,
            "num_classes": 0,
            "depth": 24,
            **SHAPES[size],
            "dim_head": 128,
            "pool": "mean",
            "stem": {"kind": "linear", "patch_norm": "after"},
            "qkv_bias": False,
            "out_bias": "none",
            "act": "swiglu",
            "norm": "rms",
            "norm_eps": 1e-5,
        },
        parameters=MODELS[name],
        tiny={**TINY, "num_classes": 7},
        default_cfg={**CLIP, "interpolation": "bicubic", "crop_pct": 1.0},
        hub_id=f"timm/{name}.apple_pt",
    )


ENTRIES = [_entry(name) for name in MODELS]
