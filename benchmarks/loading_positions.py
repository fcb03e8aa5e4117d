"""Plain ViTs with positions inside attention, as RoPE-ViT and BEiT have them, and on ResNets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loading_case import VIT_OURS, VIT_TIMM, Case, against, ours, random_model, renamed, theirs

from vit_pytorch.pretrained import to_format


def rotary() -> Iterator[Case]:
    for kind in ("rope", "rope_mixed", "rope_ape", "rope_mixed_ape"):
        name = f"vit_small_patch16_{kind}_224"
        model = theirs("timm", "create_model", name, **VIT_TIMM)
        if "mixed" in kind:
            # Frequencies that turn tokens by more than a little.
            freqs = model.get_parameter("rope.freqs")
            torch.nn.init.normal_(freqs, generator=torch.Generator().manual_seed(0))
        learned: Any = {"kind": "learned", "class_token": False}
        positions = [learned, kind.removesuffix("_ape")] if kind.endswith("ape") else kind
        build = ours("ViT", **VIT_OURS, positions=positions, layer_scale=1e-5)
        yield against("timm Eva", f"timm `{name}`", build, model, 48, 48)
        if "mixed" in kind:
            yield renamed("RoPE-ViT", f"timm `{name}`, under the authors' names", build, model, 48)


def beit() -> Iterator[Case]:
    form = {"pool": "mean", "class_token": True, "head": {"kind": "linear", "norm": True}, "layer_scale": 0.1}
    for positions, kind in (("relative", "shared_rel_pos_bias"), ("relative_by_layer", "rel_pos_bias")):
        options = {f"use_{kind}": True, "use_abs_pos_emb": False, "init_values": 0.1}
        model = theirs("timm.models.beit", "Beit", **VIT_TIMM, **options)
        build = ours("ViT", **VIT_OURS, **form, positions=positions)
        yield against("BEiT", f"timm `Beit`, `use_{kind}`", build, model, 48, 48)


def hybrid() -> Iterator[Case]:
    """Compare with timm's ViT on a small ResNet or on convolutions, and with its reader of Google's files.

    The rounding of the many convolutions of the published ones adds up in single precision.
    """
    sizes = {**VIT_OURS, "patch_size": 1}
    build = ours("HybridViT", **sizes, resnet_depths=(1, 2))
    hybrids = import_module("timm.models.vision_transformer_hybrid")
    embed = partial(hybrids.HybridEmbed, backbone=hybrids._resnetv2((1, 2)))
    options = {**VIT_TIMM, "patch_size": 1, "embed_layer": embed}
    model = theirs("timm.models.vision_transformer", "VisionTransformer", **options)
    yield against("timm", "timm `VisionTransformer` on `ResNetV2`", build, model, 48, 48)
    yield from patches(sizes)
    written = to_format(random_model(build), "vit_jax")
    arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in written.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hybrid.npz"
        np.savez(path, **arrays)
        model.load_pretrained(str(path))  # type: ignore[operator]
    reference = "timm's reader of `.npz`, on `ResNetV2`"
    yield replace(against("vit_jax", reference, build, model, 48, 48), checkpoint=written)


def patches(sizes: dict[str, Any]) -> Iterator[Case]:
    """Compare with timm's ViT on convolutions, as MobileCLIP's is, and its reader of the authors' files."""
    hybrids = import_module("timm.models.vision_transformer_hybrid")
    kernels: dict[str, Any] = {"stride": (4, 2, 2), "kernel_size": (4, 2, 2), "padding": 0}
    stem = hybrids.ConvStem(channels=(12, 12, 48), act_layer=torch.nn.GELU, **kernels)
    embed = partial(hybrids.HybridEmbed, backbone=stem, proj=False)
    options = {**VIT_TIMM, "patch_size": 1, "embed_layer": embed, "no_embed_class": True}
    model = theirs("timm.models.vision_transformer", "VisionTransformer", **options)
    positions: Any = {"kind": "learned", "class_token": False}
    network: dict[str, Any] = {"resnet": "patches", "resnet_depths": (), "resnet_width": 12}
    build = ours("HybridViT", **sizes, **network, positions=positions)
    yield against("timm", "timm `VisionTransformer` on `ConvStem`", build, model, 48, 48)
    own = random_model(build)
    # the authors' classifier has none
    torch.nn.init.zeros_(own.get_parameter("head.bias"))
    written = to_format(own, "MobileCLIP")
    model.load_state_dict(hybrids.checkpoint_filter_fn(dict(written), model))
    reference = "timm's reader of MobileCLIP's files, on `ConvStem`"
    yield replace(against("MobileCLIP", reference, build, model, 48, 48), checkpoint=written)


def vitamin() -> Iterator[Case]:
    """Compare with timm's plain ViT on the stages of ViTamin, with and without positions."""
    module = import_module("timm.models.vitamin")
    widths, depths = (16, 24, 48), (2, 3, 1)
    stages = module.MbConvStages(module.VitCfg(embed_dim=widths, depths=depths, stem_width=widths[0]))
    options: dict[str, Any] = {
        **VIT_TIMM,
        "img_size": 64,
        "patch_size": 1,
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": partial(module.HybridEmbed, backbone=stages, proj=False),
        "mlp_layer": module.GeGluMlp,
    }
    sizes: dict[str, Any] = {key: value for key, value in VIT_OURS.items() if key != "patch_size"}
    sizes |= {"image_size": 64, "conv_dim": widths[:2], "conv_depth": depths[:2]}
    for positions in ("learned", "none"):
        build = ours("ViTamin", **sizes, positions=positions)
        embedding = {"pos_embed": "learn" if positions == "learned" else "none"}
        model = theirs("timm.models.vision_transformer", "VisionTransformer", **options, **embedding)
        label = "timm `VisionTransformer` on `MbConvStages`"
        label += "" if positions == "learned" else ", without positions"
        yield against("timm", label, build, model, 64, 64)
