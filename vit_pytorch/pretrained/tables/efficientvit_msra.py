"""Checkpoints of EfficientViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

BLOCK, DOWN, THEIR_DOWN = "stages.{i}.blocks.{j}", "stages.{i}.down", "stages.{i}.downsample"
ATTENTION, MIXER = f"{BLOCK}.attention", f"{BLOCK}.mixer.m"


def conv_norm(ours: str, theirs: str, conv: str = "conv") -> tuple[Rule, ...]:
    """Return the rules of a convolution with batch norm."""
    return (
        Rule(f"{ours}.conv.weight", f"{theirs}.{conv}.weight"),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def linear_norm(ours: str, theirs: str, conv: str = "conv") -> tuple[Rule, ...]:
    """Return the rules of a linear layer with batch norm, a convolution of theirs."""
    return (
        Rule(f"{ours}.linear.weight", f"{theirs}.{conv}.weight", POINTWISE),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def local_mix(ours: str, theirs: tuple[str, str], conv: str = "conv") -> tuple[Rule, ...]:
    """Return the rules of a depth-wise convolution and a feed-forward.

    Args:
        theirs: their names of each.
        conv: their name of a convolution with batch norm.
    """
    return (
        *conv_norm(f"{ours}.conv.layers.0", f"{theirs[0]}.m", conv),
        *linear_norm(f"{ours}.feedforward.to_hidden", f"{theirs[1]}.m.pw1", conv),
        *linear_norm(f"{ours}.feedforward.to_out", f"{theirs[1]}.m.pw2", conv),
    )


def subsampling(ours: str, theirs: str, conv: str = "conv") -> tuple[Rule, ...]:
    """Return the rules of an inverted bottleneck that halves the map."""
    inner = f"{ours}.depthwise.layers"
    return (
        Rule(f"{ours}.expand.weight", f"{theirs}.conv1.{conv}.weight", POINTWISE),
        Rule(f"{inner}.0.{{name}}", f"{theirs}.conv1.bn.{{name}}"),
        Rule(f"{inner}.2.weight", f"{theirs}.conv2.{conv}.weight"),
        Rule(f"{inner}.3.{{name}}", f"{theirs}.conv2.bn.{{name}}"),
        *(
            Rule(f"{inner}.5.{gate}.{kind}", f"{theirs}.se.{their_gate}.{kind}", *how)
            for gate, their_gate in (("squeeze", "fc1"), ("excite", "fc2"))
            for kind, *how in (("weight", POINTWISE), ("bias",))
        ),
        Rule(f"{ours}.project.weight", f"{theirs}.conv3.{conv}.weight", POINTWISE),
        Rule(f"{ours}.norm.layers.0.{{name}}", f"{theirs}.conv3.bn.{{name}}"),
    )


OURS = own_format("stages.0.blocks.0.attention.heads.0.to_qkv.linear.weight")
TIMM = Format(
    name="timm",
    marks=("stages.0.blocks.0.mixer.m.attn.qkvs.0.conv.weight",),
    rules=(
        *(rule for k in range(4) for rule in conv_norm(f"stem.layers.{k}", f"patch_embed.conv{k + 1}")),
        *local_mix(f"{DOWN}.0", (f"{THEIR_DOWN}.res1.0", f"{THEIR_DOWN}.res1.1")),
        *subsampling(f"{DOWN}.1", f"{THEIR_DOWN}.patchmerge"),
        *local_mix(f"{DOWN}.2", (f"{THEIR_DOWN}.res2.0", f"{THEIR_DOWN}.res2.1")),
        *local_mix(f"{BLOCK}.before", (f"{BLOCK}.dw0", f"{BLOCK}.ffn0")),
        *linear_norm(f"{ATTENTION}.heads.{{k}}.to_qkv", f"{MIXER}.attn.qkvs.{{k}}"),
        *conv_norm(f"{ATTENTION}.heads.{{k}}.conv.layers.0", f"{MIXER}.attn.dws.{{k}}"),
        *linear_norm(f"{ATTENTION}.to_out", f"{MIXER}.attn.proj.1"),
        Rule(f"{ATTENTION}.bias.table", f"{MIXER}.attn.attention_biases"),
        *local_mix(f"{BLOCK}.after", (f"{BLOCK}.dw1", f"{BLOCK}.ffn1")),
        Rule("head.norm.{name}", "head.bn.{name}"),
        Rule("head.linear.{p}", "head.linear.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
