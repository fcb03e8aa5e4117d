"""The ViT of the paper's experiments with both of its parts and with either, for CIFAR and Tiny-ImageNet."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.vit import TINY
from vit_pytorch.vit_for_small_dataset import SLViT

SIZE = {"dim": 192, "depth": 9, "heads": 12, "dim_head": 16, "mlp_dim": 384}
PARTS = {
    "sl_vit": {"stem": "shifted", "attention": "locality"},
    "spt_vit": {"stem": "shifted", "attention": "plain"},
    "lsa_vit": {"stem": "linear", "attention": "locality"},
}
PARAMETERS = {
    "sl_vit_patch4_32": 2_920_948,
    "sl_vit_patch8_64": 3_060_628,
    "spt_vit_patch4_32": 2_920_840,
    "spt_vit_patch8_64": 3_060_520,
    "lsa_vit_patch4_32": 2_883_604,
    "lsa_vit_patch8_64": 2_911_252,
}
CIFAR_100 = {"mean": (0.5070, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
TINY_IMAGENET = {"mean": (0.4802, 0.4481, 0.3975), "std": (0.2770, 0.2691, 0.2821)}


def _entry(parts: str, patch: int, size: int) -> ModelEntry:
    name = f"{parts}_patch{patch}_{size}"
    sizes = {"image_size": size, "patch_size": patch, "num_classes": 100 if size == 32 else 200}
    prepare = CIFAR_100 if size == 32 else TINY_IMAGENET
    return ModelEntry(
        name=name,
        architecture=SLViT,
        config={**sizes, **SIZE, **PARTS[parts], "drop_path": 0.1},
        parameters=PARAMETERS[name],
        tiny={**TINY, "num_classes": 7, "drop_path": 0.0},
        default_cfg={**prepare, "interpolation": "bilinear", "crop_pct": 1.0},
    )


ENTRIES = [_entry(parts, patch, size) for parts in PARTS for patch, size in ((4, 32), (8, 64))]
