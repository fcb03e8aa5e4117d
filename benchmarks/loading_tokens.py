"""Models that give the tokens other roles or other ways: LocalViT, U-ViT, jumbo."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch
from loading_case import Build, Case, golden, ours
from references import read_golden
from torch import Tensor, nn

from vit_pytorch.uvit import NoisePredictor, UViT
from vit_pytorch.vaat import VAAT
from vit_pytorch.vat_siglip import SigLIPVAT

# The authors' numbers of what stands in LocalViT's feed-forward.
LOCAL_ACTS = {
    1: {"act": "relu6", "gate": "none"},
    3: {"act": "hardswish", "gate": "se"},
    4: {"act": "hardswish", "gate": "eca"},
}


def local_vit() -> Iterator[Case]:
    def from_config(config: dict[str, Any]) -> Build:
        return ours(
            "LocalViT",
            image_size=config["img_size"],
            patch_size=config["patch_size"],
            num_classes=config["num_classes"],
            dim=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            mlp_dim=int(config["embed_dim"] * config["mlp_ratio"]),
            reduction=config["reduction"],
            **LOCAL_ACTS[config["act"]],
        )

    for name, act in (("localvit", 3), ("localvit_eca", 4), ("localvit_relu6", 1)):
        yield golden("LocalViT", f"ofsoundof/LocalViT, `act={act}`", name, from_config)


def jumbo() -> Iterator[Case]:
    def from_config(config: dict[str, Any]) -> Build:
        return ours(
            "JumboViT",
            image_size=config["img_size"],
            patch_size=config["patch_size"],
            num_classes=config["num_classes"],
            dim=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            mlp_dim=int(config["embed_dim"] * config["mlp_ratio"]),
            jumbo_pieces=config["J"],
        )

    yield golden("jumbo", "antofuller/jumbo", "jumbo_vit", from_config)


def uvit_arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "num_classes": 0,
        "dim": config["embed_dim"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "mlp_dim": int(config["embed_dim"] * config["mlp_ratio"]),
    }


def noise_predictor() -> Iterator[Case]:
    def build(config: dict[str, Any]) -> nn.Module:
        return NoisePredictor(
            UViT(**uvit_arguments(config)),
            num_labels=max(config["num_classes"], 0),
            time_mlp=config["mlp_time_embed"],
            final_conv=config["conv"],
        )

    for name, kind in (("uvit", "predicted noise"), ("uvit_cond", "predicted noise with labels")):
        config, weights, tensors = read_golden(name)
        yield Case(
            format="U-ViT",
            reference=f"baofff/U-ViT, {kind}",
            build=partial(build, config),
            checkpoint=weights,
            inputs=[tensors[key] for key in ("input", "timesteps", "y") if key in tensors],
            outputs=tensors["output"],
            call=lambda model, inputs: model(*inputs),
        )


def policy() -> Iterator[Case]:
    """Compare with the public package's policy around SigLIP."""
    config, weights, tensors = read_golden("public_vat_siglip")
    given = {name: tensors[name] for name in ("tasks", "extra", "advantages")}
    yield Case(
        format="vit-pytorch SigLIPVAT",
        reference="vit-pytorch 1.26.14, `vat_siglip.SigLIPVAT`",
        build=partial(SigLIPVAT, **config),
        checkpoint=weights,
        inputs=tensors["input"],
        outputs=tensors["output"],
        call=lambda model, inputs: model(inputs, **given),
    )


def policy_with_sounds() -> Iterator[Case]:
    """Compare with the public package's policy that sees and hears."""
    for name, what in (("public_vaat", "sounds"), ("public_vaat_spectrograms", "spectrograms")):
        config, weights, tensors = read_golden(name)
        given = [tensors[name] for name in ("tasks", "extra", "advantages")]
        yield Case(
            format="vit-pytorch VAAT",
            reference=f"vit-pytorch 1.26.14, `vaat.VAAT`, {what}",
            build=partial(VAAT, **config),
            checkpoint=weights,
            inputs=[tensors["input"], tensors["audio"], *given],
            outputs=tensors["output"],
            call=act,
        )


def act(policy: nn.Module, inputs: list[Tensor]) -> Tensor:
    """Return the actions of a policy that sees and hears."""
    seen, heard, tasks, extra, advantages = inputs
    return policy(seen, heard, tasks=tasks, extra=extra, advantages=advantages)


def uvit() -> Iterator[Case]:
    """Compare the backbone with timm's blocks, the authors' without time, label and decoder."""
    for name in ("uvit", "uvit_cond"):
        config, weights, tensors = read_golden(name)
        yield Case(
            format="U-ViT",
            reference=f"timm's `Block` with weights of baofff/U-ViT{' with labels' * name.endswith('cond')}",
            build=ours("UViT", **uvit_arguments(config)),
            checkpoint=weights,
            inputs=tensors["input"],
            outputs=through_blocks(config, weights, tensors["input"]),
            call=lambda model, inputs: model.forward_features(inputs),
        )


def through_blocks(config: dict[str, Any], weights: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """Compute the tokens of patches from the authors' weights, without time and label."""
    block = import_module("timm.models.vision_transformer").Block
    norm = partial(nn.LayerNorm, eps=config["norm_eps"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): t for key, t in weights.items() if key.startswith(prefix)}

    def apply(prefix: str, tokens: Tensor) -> Tensor:
        own = part(prefix)
        skip = [own.pop(f"skip_linear.{p}", None) for p in ("weight", "bias")]
        if skip[0] is not None:
            tokens = nn.functional.linear(torch.cat([tokens, outputs.pop()], dim=2), skip[0], skip[1])
        layer = block(config["embed_dim"], config["num_heads"], config["mlp_ratio"], norm_layer=norm)
        layer.load_state_dict(own, strict=True)
        return layer.eval()(tokens)

    projection = part("patch_embed.proj.")
    cells = nn.functional.conv2d(
        pictures, projection["weight"], projection["bias"], stride=config["patch_size"]
    )
    cells = cells.flatten(2).mT
    tokens = cells + weights["pos_embed"][:, -cells.shape[1] :]
    outputs: list[Tensor] = []
    for layer in range(config["depth"] // 2):
        tokens = apply(f"in_blocks.{layer}.", tokens)
        outputs.append(tokens)
    tokens = apply("mid_block.", tokens)
    for layer in range(config["depth"] // 2):
        tokens = apply(f"out_blocks.{layer}.", tokens)
    last = norm(config["embed_dim"])
    last.load_state_dict(part("norm."))
    return last(tokens)
