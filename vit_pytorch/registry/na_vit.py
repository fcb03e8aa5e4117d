"""NaViT at the sizes of the ViT paper (Dehghani et al. 2023), and timm's NaFlexViT."""

from typing import Any

from vit_pytorch.na_vit import NaViT
from vit_pytorch.na_vit_nested_tensor import NaViT as NestedNaViT
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.registers import SHAPES
from vit_pytorch.registry.towers import CLIP
from vit_pytorch.registry.vit import SIZES, TINY

PARAMETERS = {"tiny": 6_123_112, "small": 23_746_792, "base": 93_498_856, "large": 316_677_096}
PREPARE = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic", "crop_pct": 1.0}
CLASSES = {"navit": NaViT, "navit_nested": NestedNaViT}


def _entry(kind: str, size: str) -> ModelEntry:
    return ModelEntry(
        name=f"{kind}_{size}_patch16",
        architecture=CLASSES[kind],
        config={"image_size": 256, "patch_size": 16, "num_classes": 1000, **SIZES[size]},
        parameters=PARAMETERS[size],
        tiny={**TINY, "num_classes": 7},
        default_cfg=PREPARE,
        exceptions={"gradients_per_sample": "Opacus' rule for LayerNorm needs a bias"},
    )


# timm's form: norms with biases, one width of queries, keys and values, no norm of queries and keys
NAFLEX = {"qk_norm": "none", "qkv_bias": True, "norm_bias": True}
SCALE = {"layer_scale": 1e-5}
GAP = {"pool": "mean", "fc_norm": True, "num_registers": 4, **SCALE}
SO150M2 = {"qkv_bias": False, "num_registers": 1, **SCALE}
SIGLIP = {"act": "gelu_tanh", "pos_type": {"kind": "table", "mode": "bilinear"}}
TRAINED = "e300_s576_in1k"
# name: size, parameters, release, what it differs by
FLEXIBLE: dict[str, tuple[str, int, str | None, dict[str, Any]]] = {
    "base_patch16_gap": ("base", 86_633_704, TRAINED, GAP),
    "base_patch16_par_gap": (
        *("base", 86_633_704, TRAINED),
        {**GAP, "pos_type": {"kind": "table", "keep_aspect": True}},
    ),
    "base_patch16_parfac_gap": ("base", 86_461_672, TRAINED, {**GAP, "pos_type": "aspect"}),
    "base_patch16_map": ("base", 93_718_504, None, {"num_registers": 1, **SCALE}),
    "so150m2_patch16_reg1_gap": ("so150m2", 136_058_728, None, {**GAP, **SO150M2}),
    "so150m2_patch16_reg1_map": ("so150m2", 142_457_320, None, SO150M2),
    "base_patch16_siglip": ("base", 93_699_304, "v2_webli", SIGLIP),
    "so400m_patch16_siglip": ("so400m", 429_041_064, "v2_webli", SIGLIP),
}
# C-RADIO (arXiv:2412.07679, arXiv:2601.17237): size, parameters, registers, further options. Their positions
# are of 128 x 128 places; of the third version, those of two models meet corners.
RADIO: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "base_patch16_radio_v3": ("base", 99_021_544, 7, {**SCALE, "align_corners": True}),
    "large_patch16_radio_v3": ("large", 320_956_392, 7, SCALE),
    "huge_patch16_radio_v3": ("huge", 652_925_160, 7, {"align_corners": True}),
    "giant_patch16_radio_v3": ("radio_giant", 1_161_157_096, 7, {}),
    "so400m_patch16_radio_v4": ("so400m", 432_391_384, 9, {}),
    "huge_patch16_radio_v4": ("huge", 652_927_720, 9, {}),
}
NAFLEX_SIZES = {
    **SHAPES,
    "radio_giant": {"dim": 1536, "depth": 40, "heads": 24, "mlp_dim": 6144},
}


def _flexible(name: str, size: str, parameters: int, tag: str | None, config: dict[str, Any]) -> ModelEntry:
    published, radio = f"timm/naflexvit_{name}.{tag}", tag == "c_radio"
    return ModelEntry(
        name=f"naflexvit_{name}",
        architecture=NaViT,
        config={
            "image_size": 2048 if radio else 256,
            "patch_size": 16,
            "num_classes": 0 if radio or "siglip" in name else 1000,
            "pos_type": "table",
            **NAFLEX_SIZES[size],
            **NAFLEX,
            **config,
        },
        parameters=parameters,
        tiny={**TINY, "num_classes": 7},
        default_cfg={
            **PREPARE,
            **(CLIP if radio else {}),
            "input_size": (3, 512, 512) if radio else (3, 384, 384),
        },
        hub_id=None if tag is None else published,
    )


def _radio(name: str, size: str, parameters: int, registers: int, options: dict[str, Any]) -> ModelEntry:
    table = {"kind": "table", "mode": "bilinear", "antialias": False, "keep_aspect": True}
    scale = {key: value for key, value in options.items() if key in SCALE}
    table |= {key: value for key, value in options.items() if key not in SCALE}
    form = {"pool": "cls", "num_registers": registers, "final_norm": False, "pos_type": table}
    return _flexible(name, size, parameters, "c_radio", {**form, **scale})


ENTRIES = [
    *(_entry(kind, size) for kind in CLASSES for size in PARAMETERS),
    *(_flexible(name, *rest) for name, rest in FLEXIBLE.items()),
    *(_radio(name, *rest) for name, rest in RADIO.items()),
]
