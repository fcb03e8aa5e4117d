"""timm's ViTs with registers and mean pooling, without a class token (registers: arXiv:2309.16588)."""

from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.vit import ViT

SHAPES = {
    "wee": {"dim": 256, "depth": 14, "heads": 4, "mlp_dim": 1280},
    "little": {"dim": 320, "depth": 14, "heads": 5, "mlp_dim": 1792},
    "mediumd": {"dim": 512, "depth": 20, "heads": 8, "mlp_dim": 2048},
    **SIZES,
}
# name: parameters, timm's release, part of the image that evaluation keeps
MODELS = {
    "vit_wee_patch16_reg1_gap_256": (13_422_568, "sbb_in1k", 0.95),
    "vit_little_patch16_reg1_gap_256": (22_515_048, "sbb_in12k_ft_in1k", 0.95),
    "vit_little_patch16_reg4_gap_256": (22_516_008, "sbb_in1k", 0.95),
    "vit_medium_patch16_reg1_gap_256": (38_880_232, "sbb_in1k", 0.95),
    "vit_medium_patch16_reg4_gap_256": (38_881_768, "sbb_in12k_ft_in1k", 0.95),
    "vit_mediumd_patch16_reg4_gap_256": (64_109_032, "sbb2_e200_in12k_ft_in1k", 0.95),
    "vit_mediumd_patch16_reg4_gap_384": (64_272_872, "sbb2_e200_in12k_ft_in1k", 1.0),
    "vit_betwixt_patch16_reg1_gap_256": (60_396_520, "sbb_in1k", 0.95),
    "vit_betwixt_patch16_reg4_gap_256": (60_398_440, "sbb2_e200_in12k_ft_in1k", 0.95),
    "vit_betwixt_patch16_reg4_gap_384": (60_603_240, "sbb2_e200_in12k_ft_in1k", 1.0),
    "vit_base_patch16_reg4_gap_256": (86_615_272, None, 0.9),
    "vit_medium_patch16_rope_reg1_gap_256": (38_743_016, "sbb_in1k", 0.95),
    "vit_mediumd_patch16_rope_reg1_gap_256": (63_945_704, "sbb_in1k", 0.95),
    "vit_betwixt_patch16_rope_reg4_gap_256": (60_226_920, "sbb_in1k", 0.95),
    "vit_base_patch16_rope_reg1_gap_256": (86_425_576, "sbb_in1k", 0.95),
}
LEARNED = {"kind": "learned", "class_token": False}
ROTARY = {"kind": "rope_scaled", "reference": (16, 16), "first_axis_first": True}


def _entry(name: str) -> ModelEntry:
    parameters, tag, crop_pct = MODELS[name]
    _, size, _, *kinds, registers, _, image_size = name.split("_")
    rotary = "rope" in kinds
    config = {
        "image_size": int(image_size),
        "patch_size": 16,
        "num_classes": 1000,
        **SHAPES[size],
        "pool": "mean",
        "num_registers": int(registers.removeprefix("reg")),
        "positions": ROTARY if rotary else LEARNED,
        "qkv_bias": (size != "mediumd" and "qv") if rotary else True,
        "layer_scale": None if size == "base" and not rotary else 1e-5,
        "head": {"kind": "linear", "norm": True},
    }
    return ModelEntry(
        name=name,
        architecture=ViT,
        config=config,
        parameters=parameters,
        tiny={**TINY, "num_classes": 7, "num_registers": 4, "layer_scale": 1e-5, "positions": LEARNED},
        default_cfg={**PREPARE, **(CLIP if rotary and size == "betwixt" else {}), "crop_pct": crop_pct},
        hub_id=None if tag is None else f"timm/{name}.{tag}",
    )


ENTRIES = [_entry(name) for name in MODELS]
