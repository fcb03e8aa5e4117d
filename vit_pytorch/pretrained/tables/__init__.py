"""Formats of checkpoints as data, one file a family of models."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from vit_pytorch.pretrained.rules import Format

TABLES = {
    "DistillableViT": "distill",
    "ViT": "vit",
    "HybridViT": "vit",
    "SimpleViT": "vit",
    "ViT3D": "vit_3d",
    "SimpleViT3D": "vit_3d",
    "ViViT": "vit_3d",
    "ViT1D": "vit_1d",
    "XCiT": "xcit",
    "PiT": "pit",
    "LeViT": "levit",
    "CvT": "cvt",
    "TwinsSVT": "twins_svt",
    "RegionViT": "regionvit",
    "CrossFormer": "crossformer",
    "ScalableViT": "scalable_vit",
    "SepViT": "sep_vit",
    "MaxViT": "max_vit",
    "NesT": "nest",
    "SwinTransformer": "swin",
    "SwinTransformerV2": "swin_v2",
    "MobileViT": "mobile_vit",
    "ATSViT": "ats_vit",
    "PatchMergerViT": "vit_with_patch_merger",
    "CCT": "cct",
    "CCT3D": "cct",
    "SLViT": "vit_for_small_dataset",
    "DeepViT": "deepvit",
    "T2TViT": "t2t",
    "CaiT": "cait",
    "CrossViT": "cross_vit",
    "ParallelViT": "parallel_vit",
    "LocalViT": "local_vit",
    "UViT": "uvit",
    "NoisePredictor": "noise_predictor",
    "JumboViT": "jumbo_vit",
    "LookupViT": "look_vit",
    "NaViT": "na_vit",
    "NormalizedViT": "normalized_vit",
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
    "RvT": "rvt",
    "LoopedViT": "looped_vit",
    "SparseGatingSimpleViT": "simple_vit_with_sparse_gating",
    "AttentionResidualSimpleViT": "simple_vit_attn_residual",
    "RegisterMaxViT": "max_vit_with_registers",
    "PolarViTND": "vit_nd_pope",
    "DetPoolViT": "vit_detpool",
}


def formats_for(model: nn.Module) -> tuple[Format, ...]:
    """Return the formats that a model's checkpoints are published in.

    Raises:
        ValueError: where no table is known for the architecture.
    """
    for architecture in type(model).__mro__:
        if architecture.__name__ in TABLES:
            table = import_module(f"vit_pytorch.pretrained.tables.{TABLES[architecture.__name__]}")
            return tuple(table.FORMATS)
    raise ValueError(f"no formats of checkpoints are known for {type(model).__name__}")
