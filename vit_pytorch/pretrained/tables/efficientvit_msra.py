"""Checkpoints of EfficientViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

BLOCK, DOWN, THEIR_DOWN = "stages.{i}.blocks.{j}", "stages.{i}.down", "stages.{i}.downsample"
ATTENTION, MIXER = f"{BLOCK}.attention", f"{BLOCK}.mixer.m"


def _conv(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of a convolution with batch norm."""
    return (
        Rule(f"{ours}.conv.weight", f"{theirs}.conv.weight"),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def _linear(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of a linear layer with batch norm, a convolution of theirs."""
    return (
        Rule(f"{ours}.linear.weight", f"{theirs}.conv.weight", POINTWISE),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def _local(ours: str, conv: str, feedforward: str) -> tuple[Rule, ...]:
    """Return the rules of a depth-wise convolution and a feed-forward."""
    return (
        *_conv(f"{ours}.conv.layers.0", f"{conv}.m"),
        *_linear(f"{ours}.feedforward.to_hidden", f"{feedforward}.m.pw1"),
        *_linear(f"{ours}.feedforward.to_out", f"{feedforward}.m.pw2"),
    )


OURS = own_format("stages.0.blocks.0.attention.heads.0.to_qkv.linear.weight")
TIMM = Format(
    name="timm",
    marks=("stages.0.blocks.0.mixer.m.attn.qkvs.0.conv.weight",),
    rules=(
        *(rule for k in range(4) for rule in _conv(f"stem.layers.{k}", f"patch_embed.conv{k + 1}")),
        *_local(f"{DOWN}.0", f"{THEIR_DOWN}.res1.0", f"{THEIR_DOWN}.res1.1"),
        Rule(f"{DOWN}.1.expand.weight", f"{THEIR_DOWN}.patchmerge.conv1.conv.weight", POINTWISE),
        Rule(f"{DOWN}.1.depthwise.layers.0.{{name}}", f"{THEIR_DOWN}.patchmerge.conv1.bn.{{name}}"),
        Rule(f"{DOWN}.1.depthwise.layers.2.weight", f"{THEIR_DOWN}.patchmerge.conv2.conv.weight"),
        Rule(f"{DOWN}.1.depthwise.layers.3.{{name}}", f"{THEIR_DOWN}.patchmerge.conv2.bn.{{name}}"),
        *(
            Rule(
                f"{DOWN}.1.depthwise.layers.5.{ours}.{kind}",
                f"{THEIR_DOWN}.patchmerge.se.{theirs}.{kind}",
                *how,
            )
            for ours, theirs in (("squeeze", "fc1"), ("excite", "fc2"))
            for kind, *how in (("weight", POINTWISE), ("bias",))
        ),
        Rule(f"{DOWN}.1.project.weight", f"{THEIR_DOWN}.patchmerge.conv3.conv.weight", POINTWISE),
        Rule(f"{DOWN}.1.norm.layers.0.{{name}}", f"{THEIR_DOWN}.patchmerge.conv3.bn.{{name}}"),
        *_local(f"{DOWN}.2", f"{THEIR_DOWN}.res2.0", f"{THEIR_DOWN}.res2.1"),
        *_local(f"{BLOCK}.before", f"{BLOCK}.dw0", f"{BLOCK}.ffn0"),
        *_linear(f"{ATTENTION}.heads.{{k}}.to_qkv", f"{MIXER}.attn.qkvs.{{k}}"),
        *_conv(f"{ATTENTION}.heads.{{k}}.conv.layers.0", f"{MIXER}.attn.dws.{{k}}"),
        *_linear(f"{ATTENTION}.to_out", f"{MIXER}.attn.proj.1"),
        Rule(f"{ATTENTION}.bias.table", f"{MIXER}.attn.attention_biases"),
        *_local(f"{BLOCK}.after", f"{BLOCK}.dw1", f"{BLOCK}.ffn1"),
        Rule("head.norm.{name}", "head.bn.{name}"),
        Rule("head.linear.{p}", "head.linear.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
