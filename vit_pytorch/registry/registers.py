"""timm's ViTs with registers, without a class token (registers: arXiv:2309.16588)."""

from typing import Any

from vit_pytorch.registry.entry import NO_BATCH, ModelEntry
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.registry.vit import PREPARE, SIZES, TINY
from vit_pytorch.vit import ViT

SHAPES = {
    "wee": {"dim": 256, "depth": 14, "heads": 4, "mlp_dim": 1280},
    "little": {"dim": 320, "depth": 14, "heads": 5, "mlp_dim": 1792},
    "pwee": {"dim": 256, "depth": 16, "heads": 4, "mlp_dim": 1280},
    "so150m": {"dim": 896, "depth": 18, "heads": 14, "mlp_dim": 2304},
    "so150m2": {"dim": 832, "depth": 21, "heads": 13, "mlp_dim": 2176},
    "mediumd": {"dim": 512, "depth": 20, "heads": 8, "mlp_dim": 2048},
    **SIZES,
}
SHAPES |= {"dwee": SHAPES["wee"], "dlittle": SHAPES["little"], "dpwee": SHAPES["pwee"]}
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
    "vit_pwee_patch16_reg1_gap_256": (15_253_480, "sbb_in1k", 0.95),
    "vit_dwee_patch16_reg1_gap_256": (13_425_256, "sbb_nadamuon_in1k", 0.95),
    "vit_dlittle_patch16_reg1_gap_256": (22_517_736, "sbb_nadamuon_in1k", 0.95),
    "vit_dpwee_patch16_reg1_gap_256": (15_252_456, "sbb_nadamuon_in1k", 0.95),
    "vit_so150m_patch16_reg4_map_256": (141_481_064, None, 0.9),
    "vit_so150m_patch16_reg4_gap_256": (134_131_560, "sbb_e250_in12k_ft_in1k", 0.95),
    "vit_so150m_patch16_reg4_gap_384": (134_418_280, "sbb_e250_in12k_ft_in1k", 1.0),
    "vit_so150m2_patch16_reg1_gap_256": (136_059_560, "sbb_e200_in12k_ft_in1k", 1.0),
    "vit_so150m2_patch16_reg1_gap_384": (136_325_800, "sbb_e200_in12k_ft_in1k", 1.0),
    "vit_so150m2_patch16_reg1_gap_448": (136_498_856, "sbb_e200_in12k_ft_in1k", 1.0),
    "vit_betwixt_patch16_rope_reg4_gap_256": (60_226_920, "sbb_in1k", 0.95),
    "vit_base_patch16_rope_reg1_gap_256": (86_425_576, "sbb_in1k", 0.95),
}
LEARNED = {"kind": "learned", "class_token": False}
LEARNED_ALL = {"kind": "learned", "registers": True}
ROTARY = {"kind": "rope_scaled", "reference": (16, 16), "first_axis_first": True}


# What differs from the others, by the size.
OPTIONS: dict[str, dict[str, Any]] = {
    "pwee": {"norm": {"kind": "layer", "shared": True}},
    "dwee": {"attention": "differential"},
    "dlittle": {"attention": "differential"},
    "dpwee": {
        "attention": "differential",
        "norm": {"kind": "layer", "shared": True},
        # Both branches share a bias of what they return, that of the feed-forward.
        "out_bias": False,
    },
    "so150m": {"positions": LEARNED_ALL, "layer_scale": None, "head": "linear"},
    "so150m2": {"positions": LEARNED_ALL, "qkv_bias": False},
}


def _entry(name: str) -> ModelEntry:
    parameters, tag, crop_pct = MODELS[name]
    _, size, _, *kinds, registers, pool, image_size = name.split("_")
    rotary = "rope" in kinds
    config = {
        "image_size": int(image_size),
        "patch_size": 16,
        "num_classes": 1000,
        **SHAPES[size],
        "pool": "mean" if pool == "gap" else "map",
        "num_registers": int(registers.removeprefix("reg")),
        "positions": ROTARY if rotary else LEARNED,
        "qkv_bias": (size != "mediumd" and "qv") if rotary else True,
        "layer_scale": None if size == "base" and not rotary else 1e-5,
        "head": {"kind": "linear", "norm": True},
        **OPTIONS.get(size, {}),
    }
    # One of each kind of block is enough.
    tiny: dict[str, Any] = OPTIONS["dpwee"] if size in ("pwee", "dwee", "dlittle", "dpwee") else {}
    if size.startswith("so150m"):
        tiny = {"positions": "learned", "pool": "mean"}
    return ModelEntry(
        name=name,
        architecture=ViT,
        config=config,
        parameters=parameters,
        tiny={
            **TINY,
            "num_classes": 7,
            "num_registers": 4,
            "layer_scale": 1e-5,
            "positions": LEARNED,
            **tiny,
        },
        default_cfg={
            **PREPARE,
            **(CLIP if rotary and size == "betwixt" else {}),
            "crop_pct": crop_pct,
            "crop_mode": "squash" if image_size == "448" else "center",
        },
        hub_id=None if tag is None else f"timm/{name}.{tag}",
        exceptions=NO_BATCH if tiny.get("attention") == "differential" else {},
    )


ENTRIES = [_entry(name) for name in MODELS]
