"""Checkpoints of MaxViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

BLOCK = "stages.{i}.encoder.blocks.{j}"
BOTTLENECK = f"{BLOCK}.conv.branch"

# TensorFlow's tables have axes for the heads, the rows and the columns of the offsets key - query; ours have
# one axis for the offsets query - key, in front of the heads. Their extents tell the window, so that one of
# another window leaves here as it is but for the order.
OFFSETS = Transform(
    lambda parts, attention: parts[0].flip(1, 2).permute(1, 2, 0),
    lambda table, attention: (
        table.T.unflatten(1, [2 * extent - 1 for extent in attention.bias.window]).flip(1, 2),
    ),
)


def _pointwise(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"{ours}.weight", f"{theirs}.weight", POINTWISE), Rule(f"{ours}.bias", f"{theirs}.bias")


def _transformer(part: str, **names: str) -> tuple[Rule, ...]:
    """Give the rules of a transformer block from their names of its layers."""
    ours = f"{BLOCK}.{part}"
    return (
        Rule(f"{ours}.attention.norm.{{p}}", f"{names['norm1']}.{{p}}"),
        Rule(f"{ours}.attention.branch.attention.to_qkv.{{p}}", f"{names['qkv']}.{{p}}"),
        Rule(f"{ours}.attention.branch.attention.to_out.{{p}}", f"{names['proj']}.{{p}}"),
        Rule(f"{ours}.feedforward.norm.{{p}}", f"{names['norm2']}.{{p}}"),
        Rule(f"{ours}.feedforward.branch.to_hidden.{{p}}", f"{names['fc1']}.{{p}}"),
        Rule(f"{ours}.feedforward.branch.to_out.{{p}}", f"{names['fc2']}.{{p}}"),
    )


def _timm(part: str, theirs: str) -> tuple[Rule, ...]:
    block = f"stages.{{i}}.blocks.{{j}}.{theirs}"
    return (
        *_transformer(
            part,
            norm1=f"{block}.norm1",
            qkv=f"{block}.attn.qkv",
            proj=f"{block}.attn.proj",
            norm2=f"{block}.norm2",
            fc1=f"{block}.mlp.fc1",
            fc2=f"{block}.mlp.fc2",
        ),
        Rule(
            f"{BLOCK}.{part}.attention.branch.bias.table",
            f"{block}.attn.rel_pos.relative_position_bias_table",
            OFFSETS,
        ),
    )


def _torchvision(part: str, theirs: str) -> tuple[Rule, ...]:
    block = f"blocks.{{i}}.layers.{{j}}.layers.{theirs}"
    return (
        *_transformer(
            part,
            norm1=f"{block}.attn_layer.0",
            qkv=f"{block}.attn_layer.1.to_qkv",
            proj=f"{block}.attn_layer.1.merge",
            norm2=f"{block}.mlp_layer.0",
            fc1=f"{block}.mlp_layer.1",
            fc2=f"{block}.mlp_layer.3",
        ),
        Rule(
            f"{BLOCK}.{part}.attention.branch.bias.table",
            f"{block}.attn_layer.1.relative_position_bias_table",
        ),
    )


_CONV = "stages.{i}.blocks.{j}.conv"
_MBCONV = "blocks.{i}.layers.{j}.layers.MBconv"

OURS = own_format("stages.0.encoder.blocks.0.window.attention.branch.bias.table")
TIMM = Format(
    name="timm",
    marks=("stages.0.blocks.0.attn_block.attn.qkv.weight",),
    rules=(
        Rule("stem.layers.0.{p}", "stem.conv1.{p}"),
        Rule("stem.layers.1.{name}", "stem.norm1.{name}"),
        Rule("stem.layers.3.{p}", "stem.conv2.{p}"),
        *_pointwise(f"{BLOCK}.conv.shortcut.1", f"{_CONV}.shortcut.expand"),
        Rule(f"{BLOCK}.conv.norm.layers.0.{{name}}", f"{_CONV}.pre_norm.{{name}}"),
        *_pointwise(f"{BOTTLENECK}.expand", f"{_CONV}.conv1_1x1"),
        Rule(f"{BOTTLENECK}.depthwise.layers.0.{{name}}", f"{_CONV}.norm1.{{name}}"),
        Rule(f"{BOTTLENECK}.depthwise.layers.2.{{p}}", f"{_CONV}.conv2_kxk.{{p}}"),
        Rule(f"{BOTTLENECK}.depthwise.layers.3.{{name}}", f"{_CONV}.norm2.{{name}}"),
        *_pointwise(f"{BOTTLENECK}.depthwise.layers.5.squeeze", f"{_CONV}.se.fc1"),
        *_pointwise(f"{BOTTLENECK}.depthwise.layers.5.excite", f"{_CONV}.se.fc2"),
        *_pointwise(f"{BOTTLENECK}.project", f"{_CONV}.conv3_1x1"),
        *_timm("window", "attn_block"),
        *_timm("grid", "attn_grid"),
        Rule("fc_norm.{p}", "head.norm.{p}"),
        Rule("pre_logits.0.{p}", "head.pre_logits.fc.{p}"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
TORCHVISION = Format(
    name="torchvision",
    marks=("blocks.0.layers.0.layers.MBconv.layers.conv_a.0.weight",),
    unused=(
        "blocks.{i}.layers.{j}.layers.window_attention.attn_layer.1.relative_position_index",
        "blocks.{i}.layers.{j}.layers.grid_attention.attn_layer.1.relative_position_index",
    ),
    rules=(
        Rule("stem.layers.0.{p}", "stem.0.0.{p}"),
        Rule("stem.layers.1.{name}", "stem.0.1.{name}"),
        Rule("stem.layers.3.{p}", "stem.1.0.{p}"),
        *_pointwise(f"{BLOCK}.conv.shortcut.1", f"{_MBCONV}.proj.1"),
        Rule(f"{BLOCK}.conv.norm.layers.0.{{name}}", f"{_MBCONV}.layers.pre_norm.{{name}}"),
        *_pointwise(f"{BOTTLENECK}.expand", f"{_MBCONV}.layers.conv_a.0"),
        Rule(f"{BOTTLENECK}.depthwise.layers.0.{{name}}", f"{_MBCONV}.layers.conv_a.1.{{name}}"),
        Rule(f"{BOTTLENECK}.depthwise.layers.2.{{p}}", f"{_MBCONV}.layers.conv_b.0.{{p}}"),
        Rule(f"{BOTTLENECK}.depthwise.layers.3.{{name}}", f"{_MBCONV}.layers.conv_b.1.{{name}}"),
        *_pointwise(f"{BOTTLENECK}.depthwise.layers.5.squeeze", f"{_MBCONV}.layers.squeeze_excitation.fc1"),
        *_pointwise(f"{BOTTLENECK}.depthwise.layers.5.excite", f"{_MBCONV}.layers.squeeze_excitation.fc2"),
        *_pointwise(f"{BOTTLENECK}.project", f"{_MBCONV}.layers.conv_c"),
        *_torchvision("window", "window_attention"),
        *_torchvision("grid", "grid_attention"),
        Rule("fc_norm.{p}", "classifier.2.{p}"),
        Rule("pre_logits.0.{p}", "classifier.3.{p}"),
        Rule("head.{p}", "classifier.5.{p}"),
    ),
)
FORMATS = (OURS, TIMM, TORCHVISION)
