"""Checkpoints of MobileViTV2."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.mobile_vit import (
    BLOCK,
    LAYER,
    NAMES,
    batch_normed,
    pointwise,
    timm_bottleneck,
    transformers_opening,
)

_LAYER = "stages.{i}.1.transformer.{j}"
_THEIRS = "encoder.layer.{i}.transformer.layer.{j}"


def _convolution(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of a linear layer, a 1 x 1 convolution of theirs."""
    return Rule(f"{ours}.weight", f"{theirs}.weight", POINTWISE), Rule(f"{ours}.bias", f"{theirs}.bias")


OURS = own_format("stages.2.blocks.0.transformer.0.attention.to_qkv.weight")
TIMM = Format(
    name="timm",
    marks=("stages.2.1.transformer.0.attn.qkv_proj.weight",),
    rules=(
        *batch_normed("stem", "stem", "conv", "bn"),
        *timm_bottleneck("stages.{i}.down", "stages.{i}.0"),
        *timm_bottleneck("stages.1.blocks.0", "stages.1.1"),
        *batch_normed(f"{BLOCK}.local", "stages.{i}.1.conv_kxk", "conv", "bn"),
        Rule(f"{BLOCK}.widen.weight", "stages.{i}.1.conv_1x1.weight", POINTWISE),
        Rule(f"{LAYER}.norm1.layers.0.{{p}}", f"{_LAYER}.norm1.{{p}}"),
        *_convolution(f"{LAYER}.attention.to_qkv", f"{_LAYER}.attn.qkv_proj"),
        *_convolution(f"{LAYER}.attention.to_out", f"{_LAYER}.attn.out_proj"),
        Rule(f"{LAYER}.norm2.layers.0.{{p}}", f"{_LAYER}.norm2.{{p}}"),
        *_convolution(f"{LAYER}.feedforward.to_hidden", f"{_LAYER}.mlp.fc1"),
        *_convolution(f"{LAYER}.feedforward.to_out", f"{_LAYER}.mlp.fc2"),
        Rule(f"{BLOCK}.norm.layers.0.{{p}}", "stages.{i}.1.norm.{p}"),
        *pointwise(f"{BLOCK}.narrow", "stages.{i}.1.conv_proj", "conv", "bn"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.layer.2.transformer.layer.0.attention.qkv_proj.convolution.weight",),
    prefix="mobilevitv2.",
    rules=(
        *transformers_opening(1),
        Rule(f"{LAYER}.norm1.layers.0.{{p}}", f"{_THEIRS}.layernorm_before.{{p}}"),
        *_convolution(f"{LAYER}.attention.to_qkv", f"{_THEIRS}.attention.qkv_proj.convolution"),
        *_convolution(f"{LAYER}.attention.to_out", f"{_THEIRS}.attention.out_proj.convolution"),
        Rule(f"{LAYER}.norm2.layers.0.{{p}}", f"{_THEIRS}.layernorm_after.{{p}}"),
        *_convolution(f"{LAYER}.feedforward.to_hidden", f"{_THEIRS}.ffn.conv1.convolution"),
        *_convolution(f"{LAYER}.feedforward.to_out", f"{_THEIRS}.ffn.conv2.convolution"),
        Rule(f"{BLOCK}.norm.layers.0.{{p}}", "encoder.layer.{i}.layernorm.{p}"),
        *pointwise(f"{BLOCK}.narrow", "encoder.layer.{i}.conv_projection", *NAMES),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, TIMM, TRANSFORMERS)
