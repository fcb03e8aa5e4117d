"""Formats of checkpoints as data, one file a family of models."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from vit_pytorch.pretrained.rules import Format, Reference
from vit_pytorch.registry import entries

# Models whose table is not called as their own file is, or of which there are no named ones.
SHARED = {
    "HybridViT": "vit",
    "SimpleViT": "vit",
    "SimpleViT3D": "vit_3d",
    "ViViT": "vit_3d",
    "CCT3D": "cct",
    "NoisePredictor": "noise_predictor",
    "PatchDropoutViT": "vit_with_patch_dropout",
    "QKNormSimpleViT": "simple_vit_with_qk_norm",
    "FlashSimpleViT": "simple_flash_attn_vit",
    "ValueResidualSimpleViT": "simple_vit_with_value_residual",
    "HyperConnectionSimpleViT": "simple_vit_with_hyper_connections",
    "KeelViT": "vit_with_keel_post_ln",
    "OrthogonalSimpleViT": "simple_vit_orthog_residual_update",
    "FrequencySimpleViT": "simple_vit_with_fft",
    "ViT5": "vit_5",
    "SpecializedSimpleViT": "simple_vit_with_specialized_cls",
    "ViTND": "vit_nd",
    "RotaryViTND": "vit_nd_rotary",
    "ProjectedBiasSimpleViT": "simple_vit_with_relative_proj_pos_bias",
    "DecorrelatedViT": "vit_with_decorr",
    "JetViT": "jet_vit",
    "WWT": "wwt",
    "SigLIPVAT": "vat_siglip",
    "VAAT": "vaat",
    "NDTransformer": "levjepa_nd",
    "MossViViT": "vivit_with_moss",
    "DepthMixSimpleViT": "attn_residual_with_dca_simple_vit",
    "RvT": "rvt",
    "LoopedViT": "looped_vit",
    "SparseGatingSimpleViT": "simple_vit_with_sparse_gating",
    "AttentionResidualSimpleViT": "simple_vit_attn_residual",
    "RegisterMaxViT": "max_vit_with_registers",
    "PolarViTND": "vit_nd_pope",
    "DetPoolViT": "vit_detpool",
}


@cache
def tables() -> dict[str, str]:
    """Return the file of each architecture's table: that called as the architecture's own, or `SHARED`."""
    files = {info.name for info in iter_modules(__path__)}
    kinds = dict.fromkeys(entry.architecture for entry in entries().values())
    own = [(kind.__name__, kind.__module__.rpartition(".")[2]) for kind in kinds]
    return {**{name: file for name, file in own if file in files}, **SHARED}


def formats_of(architecture: str) -> tuple[Format, ...]:
    """Return the formats in the table of an architecture."""
    return tuple(import_module(f"{__name__}.{tables()[architecture]}").FORMATS)


def references_of(architecture: str) -> tuple[Reference, ...]:
    """Return the models of other libraries that stand beside the table of an architecture."""
    return tuple(getattr(import_module(f"{__name__}.{tables()[architecture]}"), "REFERENCES", ()))


def formats_for(model: nn.Module) -> tuple[Format, ...]:
    """Return the formats that a model's checkpoints are published in.

    Raises:
        ValueError: where no table is known for the architecture.
    """
    for architecture in type(model).__mro__:
        if architecture.__name__ in tables():
            return formats_of(architecture.__name__)
    raise ValueError(f"no formats of checkpoints are known for {type(model).__name__}")
