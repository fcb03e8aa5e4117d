"""Checkpoints of TinyViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.mbconv import BY_HEAD
from vit_pytorch.pretrained.tables.mobile_vit import bottleneck_rules

BLOCK = "stages.{i}.blocks.{j}"
ATTENTION = f"{BLOCK}.attention.attention"
CONVS = ("conv1", "conv2", "conv3")
LATER_STAGES = range(1, 8)


def _conv_norm(ours: str, theirs: str, conv: str) -> tuple[Rule, ...]:
    """Return the rules of a convolution and its batch norm."""
    return (
        Rule(f"{ours}.conv.weight", f"{theirs}.{conv}.weight"),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def _bottleneck(ours: str, theirs: str, conv: str) -> tuple[Rule, ...]:
    """Return the rules of an inverted bottleneck."""
    first, second, third = (f"{theirs}.{name}" for name in CONVS)
    return bottleneck_rules(ours, (first, second, third), conv, "bn")


def _blocks(theirs: str, conv: str) -> tuple[Rule, ...]:
    """Return the rules of the blocks.

    Args:
        theirs: their name of one.
        conv: their name of a convolution beside its batch norm.
    """
    return (
        *_bottleneck(f"{BLOCK}.bottleneck", theirs, conv),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{theirs}.attn.norm.{{p}}"),
        Rule(f"{ATTENTION}.to_qkv.{{p}}", f"{theirs}.attn.qkv.{{p}}", BY_HEAD),
        Rule(f"{ATTENTION}.to_out.{{p}}", f"{theirs}.attn.proj.{{p}}"),
        Rule(f"{BLOCK}.attention.bias.table", f"{theirs}.attn.attention_biases"),
        *_conv_norm(f"{BLOCK}.local.layers.0", f"{theirs}.local_conv", conv),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{theirs}.mlp.norm.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
    )


# Of earlier versions of timm.
UNUSED = ("{name}.attention_bias_idxs",)
OURS = own_format("stages.0.blocks.0.bottleneck.expand.weight")
TIMM = Format(
    name="timm",
    marks=("stages.0.blocks.0.conv1.conv.weight",),
    unused=UNUSED,
    rules=(
        *_conv_norm("stem.layers.0", "patch_embed.conv1", "conv"),
        *_conv_norm("stem.layers.1", "patch_embed.conv2", "conv"),
        *_bottleneck("stages.{i}.down", "stages.{i}.downsample", "conv"),
        *_blocks(BLOCK, "conv"),
        Rule("fc_norm.{p}", "head.norm.{p}"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
AUTHORS = Format(
    name="microsoft",
    marks=("layers.0.blocks.0.conv1.c.weight",),
    unused=UNUSED,
    rules=(
        *_conv_norm("stem.layers.0", "patch_embed.seq.0", "c"),
        *_conv_norm("stem.layers.1", "patch_embed.seq.2", "c"),
        # halving ends a stage there
        *(
            rule
            for i in LATER_STAGES
            for rule in _bottleneck(f"stages.{i}.down", f"layers.{i - 1}.downsample", "c")
        ),
        *_blocks("layers.{i}.blocks.{j}", "c"),
        Rule("fc_norm.{p}", "norm_head.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM, AUTHORS)
