"""Checkpoints of MobileViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "stages.{i}.blocks.0"
LAYER = f"{BLOCK}.transformer.{{j}}"
# what transformers calls a convolution and its batch norm
NAMES = ("convolution", "normalization")


def batch_normed(ours: str, theirs: str, conv: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules of a convolution and its batch norm."""
    return (
        Rule(f"{ours}.layers.0.conv.weight", f"{theirs}.{conv}.weight"),
        Rule(f"{ours}.layers.0.norm.{{name}}", f"{theirs}.{norm}.{{name}}"),
    )


def pointwise(ours: str, theirs: str, conv: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules of a linear layer, a 1 x 1 convolution of theirs, and its batch norm."""
    return (
        Rule(f"{ours}.0.weight", f"{theirs}.{conv}.weight", POINTWISE),
        Rule(f"{ours}.1.layers.0.{{name}}", f"{theirs}.{norm}.{{name}}"),
    )


def bottleneck_rules(ours: str, layers: tuple[str, str, str], conv: str, norm: str) -> tuple[Rule, ...]:
    """Return the rules of an inverted bottleneck from their names of its three layers."""
    expand, depthwise, project = layers
    return (
        Rule(f"{ours}.expand.weight", f"{expand}.{conv}.weight", POINTWISE),
        Rule(f"{ours}.depthwise.layers.0.{{name}}", f"{expand}.{norm}.{{name}}"),
        Rule(f"{ours}.depthwise.layers.2.weight", f"{depthwise}.{conv}.weight"),
        Rule(f"{ours}.depthwise.layers.3.{{name}}", f"{depthwise}.{norm}.{{name}}"),
        Rule(f"{ours}.project.weight", f"{project}.{conv}.weight", POINTWISE),
        Rule(f"{ours}.norm.layers.0.{{name}}", f"{project}.{norm}.{{name}}"),
    )


def timm_bottleneck(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of an inverted bottleneck as timm names its layers."""
    layers = (f"{theirs}.conv1_1x1", f"{theirs}.conv2_kxk", f"{theirs}.conv3_1x1")
    return bottleneck_rules(ours, layers, "conv", "bn")


def _transformers_bottleneck(ours: str, theirs: str) -> tuple[Rule, ...]:
    layers = (f"{theirs}.expand_1x1", f"{theirs}.conv_3x3", f"{theirs}.reduce_1x1")
    return bottleneck_rules(ours, layers, *NAMES)


def transformers_opening(blocks: int) -> tuple[Rule, ...]:
    """Return the rules of what transformers has before each transformer.

    Args:
        blocks: those of the second stage, behind its first bottleneck.
    """
    bottlenecks = {
        "stages.0.down": "encoder.layer.0.layer.0",
        "stages.1.down": "encoder.layer.1.layer.0",
        **{f"stages.1.blocks.{i}": f"encoder.layer.1.layer.{i + 1}" for i in range(blocks)},
        "stages.{i}.down": "encoder.layer.{i}.downsampling_layer",
    }
    return (
        *batch_normed("stem", "conv_stem", *NAMES),
        *(rule for names in bottlenecks.items() for rule in _transformers_bottleneck(*names)),
        *batch_normed(f"{BLOCK}.local", "encoder.layer.{i}.conv_kxk", *NAMES),
        Rule(f"{BLOCK}.widen.weight", "encoder.layer.{i}.conv_1x1.convolution.weight", POINTWISE),
    )


_TIMM_LAYER = "stages.{i}.1.transformer.{j}"
_LAYER = "encoder.layer.{i}.transformer.layer.{j}"

OURS = own_format("stages.2.blocks.0.widen.weight")
TIMM = Format(
    name="timm",
    marks=("stages.2.1.conv_kxk.conv.weight",),
    rules=(
        *batch_normed("stem", "stem", "conv", "bn"),
        *timm_bottleneck("stages.{i}.down", "stages.{i}.0"),
        *timm_bottleneck("stages.1.blocks.0", "stages.1.1"),
        *timm_bottleneck("stages.1.blocks.1", "stages.1.2"),
        *batch_normed(f"{BLOCK}.local", "stages.{i}.1.conv_kxk", "conv", "bn"),
        Rule(f"{BLOCK}.widen.weight", "stages.{i}.1.conv_1x1.weight", POINTWISE),
        *timm_block(LAYER, _TIMM_LAYER),
        Rule(f"{BLOCK}.norm.{{p}}", "stages.{i}.1.norm.{p}"),
        *pointwise(f"{BLOCK}.narrow", "stages.{i}.1.conv_proj", "conv", "bn"),
        *batch_normed(f"{BLOCK}.fuse", "stages.{i}.1.conv_fusion", "conv", "bn"),
        *pointwise("norm", "final_conv", "conv", "bn"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.layer.2.conv_kxk.convolution.weight",),
    prefix="mobilevit.",
    rules=(
        *transformers_opening(2),
        Rule(f"{LAYER}.norm1.{{p}}", f"{_LAYER}.layernorm_before.{{p}}"),
        Rule(
            f"{LAYER}.attention.to_qkv.{{p}}",
            tuple(f"{_LAYER}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")),
            stack(3),
        ),
        Rule(f"{LAYER}.attention.to_out.{{p}}", f"{_LAYER}.attention.output.dense.{{p}}"),
        Rule(f"{LAYER}.norm2.{{p}}", f"{_LAYER}.layernorm_after.{{p}}"),
        Rule(f"{LAYER}.feedforward.to_hidden.{{p}}", f"{_LAYER}.intermediate.dense.{{p}}"),
        Rule(f"{LAYER}.feedforward.to_out.{{p}}", f"{_LAYER}.output.dense.{{p}}"),
        Rule(f"{BLOCK}.norm.{{p}}", "encoder.layer.{i}.layernorm.{p}"),
        *pointwise(f"{BLOCK}.narrow", "encoder.layer.{i}.conv_projection", *NAMES),
        *batch_normed(f"{BLOCK}.fuse", "encoder.layer.{i}.fusion", *NAMES),
        *pointwise("norm", "conv_1x1_exp", *NAMES),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, TIMM, TRANSFORMERS)
