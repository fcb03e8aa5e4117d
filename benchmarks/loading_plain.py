"""Plain ViTs: timm, torchvision, transformers, Google's files, the public vit-pytorch package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loading_case import (
    VIT_OURS,
    VIT_TIMM,
    Case,
    against,
    config_of,
    golden,
    named,
    ours,
    random_model,
    renamed,
    saved,
    theirs,
    through_timms_reader,
)
from references import images, read_golden
from torch import nn
from torch.nn.functional import layer_norm

from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import find_entry

VIT_TRANSFORMERS = {
    "image_size": 48,
    "patch_size": 8,
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
}
# plain ViTs as timm publishes them: our name, and what is named in the table
RELEASES = {
    "vit_small_patch16_224": "timm `vit_small_patch16_224.augreg_in21k`",
    "deit_tiny_patch16_224": "timm `deit_tiny_patch16_224.fb_in1k`",
    "vit_small_patch14_dinov2": "timm `vit_small_patch14_dinov2.lvd142m`",
    "vit_small_patch14_reg4_dinov2": "timm `vit_small_patch14_reg4_dinov2.lvd142m`",
    "vit_betwixt_patch16_reg4_gap_256": "timm `vit_betwixt_patch16_reg4_gap_256.sbb2_e200_in12k_ft_in1k`",
    "vit_base_patch16_clip_224": "timm `vit_base_patch16_clip_224.laion2b`",
    "vit_base_patch16_clip_quickgelu_224": "timm `vit_base_patch16_clip_quickgelu_224.openai`",
    "vit_base_patch16_siglip_224": "timm `vit_base_patch16_siglip_224.webli`",
}
# models of timm's Eva and Beit, with the format of their weights
EVA = {
    "vit_small_patch16_dinov3": ("timm Eva", "timm `vit_small_patch16_dinov3.lvd1689m`"),
    "vit_small_plus_patch16_dinov3_qkvb": (
        "timm Eva, SwiGLU",
        "timm `vit_small_plus_patch16_dinov3_qkvb.lvd1689m`",
    ),
    "beit_base_patch16_224": ("BEiT", "timm `beit_base_patch16_224.in22k_ft_in22k_in1k`"),
    "eva02_base_patch14_448": (
        "timm Eva, projections apart",
        "timm `eva02_base_patch14_448.mim_in22k_ft_in22k_in1k`",
    ),
    "vit_base_patch16_sapiens2": ("timm Eva, grouped queries", "timm `vit_base_patch16_sapiens2.fb`"),
    "vit_pe_core_tiny_patch16_384": ("timm", "timm `vit_pe_core_tiny_patch16_384.fb`"),
    "vit_pwee_patch16_reg1_gap_256": (
        "timm, parallel branches",
        "timm `vit_pwee_patch16_reg1_gap_256.sbb_in1k`",
    ),
    "vit_dpwee_patch16_reg1_gap_256": (
        "timm, parallel branches of differential attention",
        "timm `vit_dpwee_patch16_reg1_gap_256.sbb_nadamuon_in1k`",
    ),
    "vit_base_patch16_xp_224": (
        "timm, parallel branches without biases of queries",
        "timm `vit_base_patch16_xp_224`",
    ),
    "aimv2_large_patch14_224": ("timm Eva, SwiGLU", "timm `aimv2_large_patch14_224.apple_pt`"),
    "vit_relpos_small_patch16_224": ("timm", "timm `vit_relpos_small_patch16_224.sw_in1k`"),
    "vit_medium_patch16_rope_reg1_gap_256": ("BEiT", "timm `vit_medium_patch16_rope_reg1_gap_256.sbb_in1k`"),
}
# models whose authors' files timm's reader translates, with the format
AUTHORS = {
    "eva02_tiny_patch14_336": ("EVA-02, fused", "baaivision/EVA, EVA-02, without norms within branches"),
    "eva02_base_patch14_448": ("EVA-02", "baaivision/EVA, EVA-02"),
    "vit_base_patch16_sapiens2": ("Sapiens 2", "facebookresearch/sapiens2"),
    "vit_pe_spatial_tiny_patch16_512": ("OpenAI CLIP", "facebookresearch/perception_models"),
    "vit_base_patch32_clip_quickgelu_224": ("OpenAI CLIP", "openai/CLIP"),
}
TIMM_OPTIONS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("", {}, {}),
    (
        ", mean",
        {"pool": "mean", "class_token": True, "head": {"kind": "linear", "norm": True}},
        {"global_pool": "avg"},
    ),
    (", `map`", {"pool": "map"}, {"global_pool": "map", "class_token": False}),
    (", `qk_norm`", {"qk_norm": True}, {"qk_norm": True}),
)


def vit() -> Iterator[Case]:
    timm = "timm.models.vision_transformer"
    for option, mine, other in TIMM_OPTIONS:
        model = theirs(timm, "VisionTransformer", **{**VIT_TIMM, **other})
        yield against(
            "timm", f"timm `VisionTransformer`{option}", ours("ViT", **VIT_OURS, **mine), model, 48, 48
        )
    for name, reference in RELEASES.items():
        size = 5 * (14 if "patch14" in name else 16)
        classes = 21_843 if "in21k" in reference else 10
        model = theirs("timm", "create_model", name, depth=1, img_size=size, num_classes=classes)
        build = named(name, depth=1, image_size=size, num_classes=classes)
        yield against("timm", reference, build, model, size, size)
    for name, (layout, reference) in EVA.items():
        model = theirs("timm", "create_model", name, **options_of(name, ours=False))
        build = named(name, **options_of(name))
        size = options_of(name)["image_size"]
        yield against(layout, reference, build, model, size, size)
    for name, (layout, reference) in AUTHORS.items():
        options = options_of(name)
        model = theirs("timm", "create_model", name, **{**options_of(name, ours=False), "num_classes": 0})
        build = named(name, **{**options, "num_classes": 0})
        yield through_timms_reader(layout, reference, build, model, options["image_size"])
    yield mae_encoder()
    sizes = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 192, "num_classes": 7}
    model = theirs("torchvision.models", "VisionTransformer", 48, 8, **sizes)
    yield against("torchvision", "torchvision `VisionTransformer`", ours("ViT", **VIT_OURS), model, 48, 48)
    yield from transformers_vits()
    for name, reference in (("public_vit", "`ViT`"), ("public_vit_mean", "`ViT`, mean")):
        yield golden(
            "vit-pytorch ViT",
            f"vit-pytorch 1.26.11 {reference}",
            name,
            lambda facts: ours("ViT", **facts, qkv_bias=False, patch_norm=True, norm_eps=1e-5),
        )
    options = {"qkv_bias": False, "patch_norm": True, "norm_eps": 1e-5, "out_bias": False, "act": "gelu"}
    yield golden(
        "vit-pytorch SimpleViT",
        "vit-pytorch 1.26.11 `SimpleViT`",
        "public_simple_vit",
        lambda facts: ours("SimpleViT", **facts, **options),
    )
    yield from npz()


def options_of(name: str, *, ours: bool = True) -> dict[str, Any]:
    """Return what makes one block of a named model, by our words or by timm's."""
    config = find_entry(name).config
    options: dict[str, Any] = {"depth": 1, "num_classes": 10}
    options["image_size" if ours else "img_size"] = 5 * config["patch_size"]
    if isinstance(config.get("attention"), dict):
        grouped = {"attention": {"kind": "grouped_query", "kv_heads": 6}}
        options.update(grouped if ours else {"num_kv_heads": 6})
    return options


def mae_encoder() -> Case:
    """Compare timm's ViT, which reads the authors' encoder, with ours, which reads their whole file."""
    _, weights, tensors = read_golden("mae")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 0}
    reference = theirs("timm.models.vision_transformer", "VisionTransformer", **sizes)
    found = reference.load_state_dict(weights, strict=False)
    assert not found.missing_keys
    sizes = {"image_size": 32, "patch_size": 8, "num_classes": 0, "dim": 48, "depth": 2, "heads": 4}
    return Case(
        format="timm",
        reference="facebookresearch/mae, encoder",
        build=ours("ViT", **sizes, dim_head=12, mlp_dim=192),
        checkpoint=weights,
        inputs=tensors["input"],
        outputs=reference(tensors["input"]),
    )


def transformers_vits() -> Iterator[Case]:
    config = config_of("ViTConfig", **VIT_TRANSFORMERS, num_labels=7)
    model = theirs("transformers", "ViTForImageClassification", config)
    build = ours("ViT", **VIT_OURS, norm_eps=config.layer_norm_eps)
    yield against("transformers", "transformers `ViTForImageClassification`", build, model, 48, 48)
    x = images(48, 48)
    bare = {**VIT_OURS, "num_classes": 0}
    config = config_of("ViTMAEConfig", **VIT_TRANSFORMERS, mask_ratio=0.0)
    mae = theirs("transformers", "ViTMAEModel", config)
    noise = torch.arange(36.0).expand(2, -1)
    yield Case(
        format="transformers",
        reference="transformers `ViTMAEModel`, encoder",
        build=ours("ViT", **bare, norm_eps=config.layer_norm_eps),
        checkpoint=mae.state_dict(),
        inputs=x,
        outputs=mae(x, noise=noise).last_hidden_state,
        call=lambda model, inputs: model.forward_features(inputs),
    )
    dino = {**VIT_TRANSFORMERS, "layer_norm_eps": 1e-6}
    del dino["intermediate_size"]
    for kind, config, options in (
        ("Dinov2Model", config_of("Dinov2Config", **dino), {}),
        (
            "Dinov2WithRegistersModel",
            config_of("Dinov2WithRegistersConfig", **dino),
            {"num_registers": 4},
        ),
    ):
        other = theirs("transformers", kind, config)
        yield Case(
            format="transformers DINOv2",
            reference=f"transformers `{kind}`",
            build=ours("ViT", **bare, layer_scale=1e-5, **options),
            checkpoint=other.state_dict(),
            inputs=x,
            outputs=other(x).last_hidden_state,
            call=lambda model, inputs: model.forward_features(inputs),
        )
    for gated in (False, True):
        config = config_of(
            "DINOv3ViTConfig",
            **VIT_TRANSFORMERS,
            num_register_tokens=4,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
        )
        other = theirs("transformers", "DINOv3ViTModel", config)
        build = ours(
            "ViT",
            **bare,
            positions="rope_normalized",
            layer_scale=1.0,
            num_registers=4,
            norm_eps=1e-5,
            qkv_bias="qv",
            act="swiglu" if gated else "gelu",
        )
        yield Case(
            format=f"transformers DINOv3{', SwiGLU' if gated else ''}",
            reference=f"transformers `DINOv3ViTModel`{', gated' if gated else ''}",
            build=build,
            checkpoint=other.state_dict(),
            inputs=x,
            outputs=other(x).last_hidden_state,
            call=lambda model, inputs: model.forward_features(inputs),
        )
    config = config_of("Dinov2WithRegistersConfig", **dino, num_labels=7)
    model = theirs("transformers", "Dinov2WithRegistersForImageClassification", config)
    build = ours("ViT", **VIT_OURS, layer_scale=1e-5, num_registers=4, pool="cls+mean")
    reference = "transformers `Dinov2WithRegistersForImageClassification`"
    yield against("transformers DINOv2", reference, build, model, 48, 48)
    model = theirs("transformers", "Dinov2Model", config_of("Dinov2Config", **dino, use_swiglu_ffn=True))
    yield Case(
        format="transformers DINOv2, SwiGLU",
        reference="transformers `Dinov2Model`, gated",
        build=ours("ViT", **{**bare, "mlp_dim": 128}, layer_scale=1e-5, act="swiglu"),
        checkpoint=model.state_dict(),
        inputs=x,
        outputs=model(x).last_hidden_state,
        call=lambda model, inputs: model.forward_features(inputs),
    )
    normed = {"pool": "mean", "class_token": True, "head": {"kind": "linear", "norm": True}}
    for kind in ("Beit", "Data2VecVision"):
        config = config_of(f"{kind}Config", **VIT_TRANSFORMERS, num_labels=7, use_relative_position_bias=True)
        model = theirs("transformers", f"{kind}ForImageClassification", config)
        biases: dict[str, Any] = {"qkv_bias": "qv", "layer_scale": 0.1, "norm_eps": config.layer_norm_eps}
        build = ours("ViT", **VIT_OURS, **normed, **biases, positions="relative_by_layer")
        reference = f"transformers `{kind}ForImageClassification`"
        yield saved("transformers BEiT", reference, build, model, 48)
    clip = theirs("transformers", "CLIPVisionModel", config_of("CLIPVisionConfig", **VIT_TRANSFORMERS))
    siglip = theirs("transformers", "SiglipVisionModel", config_of("SiglipVisionConfig", **VIT_TRANSFORMERS))
    towers: tuple[tuple[str, nn.Module, dict[str, Any]], ...] = (
        ("CLIP", clip, {"stem": {"kind": "linear", "pre_norm": True}, "norm_eps": 1e-5, "act": "quickgelu"}),
        ("SigLIP", siglip, {"pool": "map", "act": "gelu_tanh"}),
    )
    for name, tower, options in towers:
        yield Case(
            format=f"transformers {name}",
            reference=f"transformers `{type(tower).__name__}`",
            build=ours("ViT", **bare, **options),
            checkpoint=tower.state_dict(),
            inputs=x,
            outputs=tower(x).pooler_output,
        )


def language_towers() -> Iterator[Case]:
    """Compare with timm's classifiers, whose tower may come alone, and transformers' Qwen3-VL."""
    sizes = {"depth": 1, "dim": 48, "heads": 3, "dim_head": 16}
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3}
    for name, release, patch, grid in (
        ("qwen3_vit_88m", "qwen3_5_0_8b", 16, {"pos_embed_grid_size": 6}),
        ("deepseek_vit_412m", "deepseek_v4_1_flash", 14, {}),
    ):
        mlp_dim = 48 * 4 if grid else 132
        build = named(name, **sizes, mlp_dim=mlp_dim, image_size=6 * patch, num_classes=7)
        model = theirs("timm", "create_model", name, **small, **grid, num_classes=7)
        yield against("timm encoder", f"timm `{name}.{release}`", build, model, 6 * patch, 6 * patch)
        if not grid:
            model = theirs("timm", "create_model", name, **small, num_classes=0)
            build = named(name, **sizes, mlp_dim=mlp_dim, image_size=6 * patch)
            yield renamed("DeepSeek-V4", "deepseek-ai/DeepSeek-V4.1-Flash", build, model, 6 * patch)
    config = config_of(
        "Qwen3VLVisionConfig",
        depth=1,
        hidden_size=48,
        num_heads=3,
        intermediate_size=192,
        out_hidden_size=24,
        num_position_embeddings=36,
        deepstack_visual_indexes=[0],
    )
    other = theirs("transformers", "Qwen3VLVisionModel", config)
    x = images(96, 96)
    # Cells stand in groups of 2 x 2, and two frames are equal.
    cells = x.unflatten(3, (3, 2, 16)).unflatten(2, (3, 2, 16)).permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = cells.flatten(0, 4)[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
    tokens = other(frames, grid_thw=torch.tensor([[1, 6, 6]] * len(x))).last_hidden_state
    yield Case(
        format="transformers Qwen3-VL",
        reference="transformers `Qwen3VLVisionModel`",
        build=named("qwen3_vit_88m", **sizes, mlp_dim=192, image_size=96),
        checkpoint=other.state_dict(),
        inputs=x,
        # as classifiers take it
        outputs=layer_norm(tokens.unflatten(0, (len(x), -1)).mean(dim=1), (48,), eps=1e-6),
    )


def gemma4() -> Iterator[Case]:
    """Compare with timm's classifier, and with transformers' scaled mean of groups of 2 x 2 tokens."""
    sizes = {"patch_size": 8, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3, "dim_head": 16}
    build = ours("Gemma4ViT", **sizes, image_size=48, mlp_dim=96, positions=9)
    sizes = {"patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 2, "num_heads": 3, "head_dim": 16}
    more = {"intermediate_size": 96, "position_embedding_size": 9, "standardize": True}
    model = theirs("timm.models.gemma4_vit", "Gemma4VitClassifier", **sizes, **more)
    yield against("timm", "timm `Gemma4VitClassifier`", build, model, 48, 48)
    sizes = {"patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "pooling_kernel_size": 2}
    more = {"intermediate_size": 96, "position_embedding_size": 9}
    other = theirs(
        "transformers", "Gemma4VisionModel", config_of("Gemma4VisionConfig", **sizes, **heads, **more)
    )
    x = images(48, 48)
    patches = x.unflatten(3, (6, 8)).unflatten(2, (6, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6)).flip(-1).expand(len(x), -1, -1)
    bare = {"num_classes": 0, "dim": 48, "depth": 2, "heads": 3, "dim_head": 16, "patch_size": 8}
    yield Case(
        format="transformers",
        reference="transformers `Gemma4VisionModel`",
        build=ours("Gemma4ViT", **bare, image_size=48, mlp_dim=96, positions=9),
        checkpoint=other.state_dict(),
        inputs=x,
        outputs=other(patches, places).last_hidden_state.unflatten(0, (len(x), -1)) / 48**0.5,
        call=lambda model, inputs: (
            model.forward_features(inputs).unflatten(1, (3, 2, 3, 2)).mean(dim=(2, 4)).flatten(1, 2)
        ),
    )


def npz() -> Iterator[Case]:
    """Compare with timm's own reader of Google's files."""
    for name in ("vit_jax", "big_vision"):
        for pool in ("cls", "map"):
            build = ours("ViT", **VIT_OURS, pool=pool)
            arrays: dict[str, Any] = {
                key: t.numpy() for key, t in to_format(random_model(build), name).items()
            }
            options = {"class_token": pool == "cls", "global_pool": "token" if pool == "cls" else "map"}
            reference = theirs("timm.models.vision_transformer", "VisionTransformer", **VIT_TIMM, **options)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "vit.npz"
                np.savez(path, **arrays)
                reference.load_pretrained(str(path))  # type: ignore[operator]
            yield replace(
                against(name, f"timm's reader of `.npz`, {pool}", build, reference, 48, 48),
                checkpoint={key: torch.from_numpy(array) for key, array in arrays.items()},
            )


def distilled() -> Iterator[Case]:
    sizes = {**VIT_OURS, "image_size": 48}
    model = theirs("timm", "create_model", "deit_tiny_distilled_patch16_224", **{**VIT_TIMM, "mlp_ratio": 4})
    yield against(
        "timm", "timm `deit_tiny_distilled_patch16_224`", ours("DistillableViT", **sizes), model, 48, 48
    )
    config = config_of("DeiTConfig", **VIT_TRANSFORMERS, num_labels=7, layer_norm_eps=1e-6)
    model = theirs("transformers", "DeiTForImageClassificationWithTeacher", config)
    reference = "transformers `DeiTForImageClassificationWithTeacher`"
    yield against("transformers DeiT", reference, ours("DistillableViT", **sizes), model, 48, 48)
