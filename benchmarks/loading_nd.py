"""Models of videos, volumes and signals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from loading_case import Build, Case, config_of, golden, logits_of, ours, theirs
from references import images
from torch import Tensor, nn

from vit_pytorch.pretrained import load_pretrained, to_format

SIZES = {
    "image_size": 32,
    "image_patch_size": 8,
    "frames": 8,
    "frame_patch_size": 2,
    "num_classes": 7,
    "dim": 48,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 96,
}
TRANSFORMERS = {
    "image_size": 32,
    "num_frames": 8,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "num_labels": 7,
}
# What the public vit-pytorch package's models are in ours.
PUBLIC = {"qkv_bias": False, "patch_norm": True, "norm_eps": 1e-5}


def of_clips(format: str, reference: str, build: Build, other: nn.Module) -> Case:
    """Compare with a model of transformers, which has frames before channels."""
    clips = images(8, 32, 32)

    def call_other(other: nn.Module, clips: Tensor) -> Tensor:
        return logits_of(other(clips.transpose(1, 2)))

    return Case(
        format=format,
        reference=reference,
        build=build,
        checkpoint=other.state_dict(),
        inputs=clips,
        outputs=call_other(other, clips),
        other=other,
        call_other=call_other,
    )


def videos() -> Iterator[Case]:
    config = config_of("VivitConfig", **TRANSFORMERS, tubelet_size=[2, 8, 8])
    vivit = theirs("transformers", "VivitForVideoClassification", config)
    reference = "transformers `VivitForVideoClassification`"
    joint = ours("ViViT", **SIZES, spatial_depth=2, variant="joint")
    yield of_clips("transformers", reference, joint, vivit)
    yield of_clips("transformers", reference, ours("ViT3D", **SIZES, depth=2, act="gelu_tanh"), vivit)

    config = config_of("VideoMAEConfig", **TRANSFORMERS, patch_size=8, tubelet_size=2, layer_norm_eps=1e-6)
    videomae: Any = theirs("transformers", "VideoMAEForVideoClassification", config)
    # The authors' epsilon, where transformers has PyTorch's.
    videomae.fc_norm.eps = 1e-6
    build = ours("ViT3D", **SIZES, depth=2, pool="mean", positions="sequence", fc_norm=True)
    reference = "transformers `VideoMAEForVideoClassification`"
    case = of_clips("transformers VideoMAE", reference, build, videomae)
    yield case
    model = build()
    load_pretrained(model, case.checkpoint)
    reference = f"{reference}, under the authors' names"
    yield replace(case, format="VideoMAE", reference=reference, checkpoint=to_format(model, "VideoMAE"))

    sizes = {"patch_size": 8, "crop_size": 32, "frames_per_clip": 8, "hidden_size": 48, "num_labels": 7}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2.0}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = config_of("VJEPA2Config", **sizes, **layers, **predictor)
    jepa = theirs("transformers", "VJEPA2ForVideoClassification", config)
    build = ours("ViT3D", **SIZES, depth=2, pool="attentive", positions="rope_tiled")
    yield of_clips("transformers V-JEPA 2", "transformers `VJEPA2ForVideoClassification`", build, jepa)

    yield golden(
        "vit-pytorch 3D ViT",
        "vit-pytorch 1.26.11 `vit_3d.ViT`",
        "public_vit_3d",
        lambda facts: ours("ViT3D", **facts, **PUBLIC),
    )
    yield golden(
        "vit-pytorch SimpleViT",
        "vit-pytorch 1.26.11 `simple_vit_3d.SimpleViT`",
        "public_simple_vit_3d",
        lambda facts: ours("SimpleViT3D", **facts, **PUBLIC, out_bias=False, act="gelu"),
    )


def signals() -> Iterator[Case]:
    yield golden(
        "vit-pytorch 1D ViT",
        "vit-pytorch 1.26.11 `vit_1d.ViT`",
        "public_vit_1d",
        lambda facts: ours("ViT1D", **facts, **PUBLIC),
    )
    form = {**PUBLIC, "out_bias": False, "pool": "mean", "positions": "sincos"}
    yield golden(
        "vit-pytorch SimpleViT",
        "vit-pytorch 1.26.11 `simple_vit_1d.SimpleViT`",
        "public_simple_vit_1d",
        lambda facts: ours("ViT1D", **facts, **form),
    )


def cct() -> Iterator[Case]:
    yield golden(
        "Compact-Transformers",
        "vit-pytorch 1.26.11 `cct_3d.CCT`",
        "public_cct_3d",
        lambda facts: ours("CCT3D", **facts),
    )
