"""Checkpoints of EfficientFormerV2."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.pit import HeadFormat

BLOCK, DOWN = "stages.{i}.blocks.{j}", "stages.{i}.down"
MIXER, THEIR_DOWN = f"{BLOCK}.token_mixer", "stages.{i}.downsample"


def _conv(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of a convolution with batch norm."""
    return (
        Rule(f"{ours}.conv.{{p}}", f"{theirs}.conv.{{p}}"),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def _linear(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of a linear layer with batch norm, a convolution of theirs."""
    return (
        Rule(f"{ours}.linear.weight", f"{theirs}.conv.weight", POINTWISE),
        Rule(f"{ours}.linear.bias", f"{theirs}.conv.bias"),
        Rule(f"{ours}.norm.{{name}}", f"{theirs}.bn.{{name}}"),
    )


def _attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules that all attention has."""
    return (
        *_linear(f"{ours}.to_k", f"{theirs}.k"),
        *_linear(f"{ours}.to_v", f"{theirs}.v"),
        *_conv(f"{ours}.conv.layers.0", f"{theirs}.v_local"),
        *_linear(f"{ours}.to_out", f"{theirs}.proj"),
        Rule(f"{ours}.bias.table", f"{theirs}.attention_biases"),
    )


def _exchange(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of what the heads exchange."""
    return (
        Rule(f"{BLOCK}.attention.kernel.{ours}.weight", f"{MIXER}.{theirs}.weight", POINTWISE),
        Rule(f"{BLOCK}.attention.kernel.{ours}.bias", f"{MIXER}.{theirs}.bias"),
    )


OURS = own_format("stages.0.blocks.0.feedforward.conv.layers.0.conv.weight")
TIMM = HeadFormat(
    name="timm",
    marks=("stages.0.blocks.0.mlp.mid.conv.weight",),
    rules=(
        *_conv("stem.layers.0", "stem.conv1"),
        *_conv("stem.layers.1", "stem.conv2"),
        *_conv(f"{DOWN}.conv.layers.0", f"{THEIR_DOWN}.conv"),
        Rule(f"{DOWN}.attention.to_q.conv.layers.0.{{p}}", f"{THEIR_DOWN}.attn.q.local.{{p}}"),
        *_linear(f"{DOWN}.attention.to_q.to_out", f"{THEIR_DOWN}.attn.q.proj"),
        *_attention(f"{DOWN}.attention", f"{THEIR_DOWN}.attn"),
        *_conv(f"{BLOCK}.attention.halve.layers.0", f"{MIXER}.stride_conv"),
        *_linear(f"{BLOCK}.attention.to_q", f"{MIXER}.q"),
        *_attention(f"{BLOCK}.attention", MIXER),
        *_exchange("mix_scores", "talking_head1"),
        *_exchange("mix_weights", "talking_head2"),
        *_linear(f"{BLOCK}.feedforward.to_hidden", f"{BLOCK}.mlp.fc1"),
        *_conv(f"{BLOCK}.feedforward.conv.layers.0", f"{BLOCK}.mlp.mid"),
        *_linear(f"{BLOCK}.feedforward.to_out", f"{BLOCK}.mlp.fc2"),
        *(Rule(f"{BLOCK}.scale{n}.gamma", f"{BLOCK}.ls{n}.gamma") for n in (1, 2)),
        Rule("norm.{name}", "norm.{name}"),
        Rule("head.{p}", "head.{p}"),
        Rule("head.classifier.{p}", "head.{p}"),
        Rule("head.distilled.{p}", "head_dist.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
