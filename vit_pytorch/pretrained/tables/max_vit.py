"""Checkpoints of MaxViT."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import SAME, Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

BLOCK = "stages.{i}.blocks.{j}"
BOTTLENECK = f"{BLOCK}.conv.bottleneck"

# TensorFlow's tables have axes for the heads, the rows and the columns of the offsets key - query; ours have
# one axis for the offsets query - key, in front of the heads. Their extents tell the window, so that one of
# another window leaves here as it is but for the order.
OFFSETS = Transform(
    lambda parts, attention: parts[0].flip(1, 2).permute(1, 2, 0),
    lambda table, attention: (
        table.T.unflatten(1, [2 * extent - 1 for extent in attention.bias.window]).flip(1, 2),
    ),
)


# Queries, keys and values of a head are neighbours there; ours are those of all heads.
BY_HEAD = Transform(
    lambda parts, attention: parts[0].unflatten(0, (attention.heads, 3, -1)).transpose(0, 1).flatten(0, 2),
    lambda tensor, attention: (tensor.unflatten(0, (3, attention.heads, -1)).transpose(0, 1).flatten(0, 2),),
)
# Layers of ours, and what kind of rule carries them: "{p}" weights and biases, "{name}" batch norms whole.
AROUND = (
    ("stem.layers.0", "{p}"),
    ("stem.layers.1", "{name}"),
    ("stem.layers.3", "{p}"),
    (f"{BLOCK}.conv.shortcut.1", "1 x 1"),
    (f"{BLOCK}.conv.norm.layers.0", "{name}"),
    (f"{BOTTLENECK}.expand", "1 x 1"),
    (f"{BOTTLENECK}.depthwise.layers.0", "{name}"),
    (f"{BOTTLENECK}.depthwise.layers.2", "{p}"),
    (f"{BOTTLENECK}.depthwise.layers.3", "{name}"),
    (f"{BOTTLENECK}.depthwise.layers.5.squeeze", "1 x 1"),
    (f"{BOTTLENECK}.depthwise.layers.5.excite", "1 x 1"),
    (f"{BOTTLENECK}.project", "1 x 1"),
    ("fc_norm", "{p}"),
    ("pre_logits.0", "{p}"),
    ("head", "{p}"),
)
TRANSFORMER = (
    "norm1",
    "attention.attention.to_qkv",
    "attention.attention.to_out",
    "norm2",
    "feedforward.to_hidden",
    "feedforward.to_out",
)


def _rule(ours: str, theirs: str, kind: str) -> tuple[Rule, ...]:
    if kind == "1 x 1":
        return Rule(f"{ours}.weight", f"{theirs}.weight", POINTWISE), Rule(f"{ours}.bias", f"{theirs}.bias")
    return (Rule(f"{ours}.{kind}", f"{theirs}.{kind}"),)


def _around(*theirs: str) -> tuple[Rule, ...]:
    """Return the rules of all but the transformer blocks, from their names in the order of `AROUND`."""
    named = zip(AROUND, theirs, strict=True)
    return tuple(rule for (ours, kind), name in named for rule in _rule(ours, name, kind))


def _transformer(
    part: str, block: str, theirs: tuple[str, ...], read: Transform = SAME, qkv: Transform = SAME
) -> tuple[Rule, ...]:
    """Return the rules of a transformer block.

    Args:
        part: what it is called here.
        block: what it is called there.
        theirs: their names of its layers, in the order of `TRANSFORMER`, and of the table of positions.
        read: how that table is read.
        qkv: how the projection of queries, keys and values is read.
    """
    *layers, table = theirs
    named = zip(TRANSFORMER, layers, strict=True)
    ours = f"{BLOCK}.{part}"
    return (
        *(
            Rule(f"{ours}.{name}.{{p}}", f"{block}.{other}.{{p}}", qkv if name.endswith("to_qkv") else SAME)
            for name, other in named
        ),
        Rule(f"{ours}.attention.bias.table", f"{block}.{table}", read),
    )


_BLOCK = "stages.{i}.blocks.{j}"
_CONV = f"{_BLOCK}.conv"
_TIMM = (
    *("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
    "attn.rel_pos.relative_position_bias_table",
)
_LAYERS = "blocks.{i}.layers.{j}.layers"
_MBCONV = f"{_LAYERS}.MBconv"
_TORCHVISION = (
    *("attn_layer.0", "attn_layer.1.to_qkv", "attn_layer.1.merge"),
    *("mlp_layer.0", "mlp_layer.1", "mlp_layer.3"),
    "attn_layer.1.relative_position_bias_table",
)

OURS = own_format("stages.0.blocks.0.window.attention.attention.to_qkv.weight")
TIMM = Format(
    name="timm",
    # Only the models that came of the authors have this bias.
    marks=("stages.0.blocks.0.conv.conv3_1x1.bias",),
    rules=(
        *_around(
            *("stem.conv1", "stem.norm1", "stem.conv2"),
            f"{_CONV}.shortcut.expand",
            f"{_CONV}.pre_norm",
            f"{_CONV}.conv1_1x1",
            f"{_CONV}.norm1",
            f"{_CONV}.conv2_kxk",
            f"{_CONV}.norm2",
            f"{_CONV}.se.fc1",
            f"{_CONV}.se.fc2",
            f"{_CONV}.conv3_1x1",
            *("head.norm", "head.pre_logits.fc", "head.fc"),
        ),
        *_transformer("window", f"{_BLOCK}.attn_block", _TIMM, OFFSETS),
        *_transformer("grid", f"{_BLOCK}.attn_grid", _TIMM, OFFSETS),
    ),
)
TIMM_OWN = replace(
    TIMM,
    name="timm, its own variants",
    marks=("stages.0.blocks.0.attn_block.attn.qkv.weight",),
    rules=(
        *(
            rule
            for ours, theirs in (("window", "attn_block"), ("grid", "attn_grid"))
            for rule in (
                *_transformer(ours, f"{_BLOCK}.{theirs}", _TIMM, qkv=BY_HEAD),
                Rule(f"{BLOCK}.{ours}.scale1.gamma", f"{_BLOCK}.{theirs}.ls1.gamma"),
                Rule(f"{BLOCK}.{ours}.scale2.gamma", f"{_BLOCK}.{theirs}.ls2.gamma"),
                *(
                    Rule(
                        f"{BLOCK}.{ours}.attention.bias.network.{index}.{{p}}",
                        f"{_BLOCK}.{theirs}.attn.rel_pos.mlp.fc{1 + index // 2}.{{p}}",
                    )
                    for index in (0, 2)
                ),
            )
        ),
        Rule("norm.{p}", "norm.{p}"),
        *TIMM.rules,
    ),
)
TORCHVISION = Format(
    name="torchvision",
    marks=("blocks.0.layers.0.layers.MBconv.layers.conv_a.0.weight",),
    unused=tuple(
        f"{_LAYERS}.{part}_attention.attn_layer.1.relative_position_index" for part in ("window", "grid")
    ),
    rules=(
        *_around(
            *("stem.0.0", "stem.0.1", "stem.1.0"),
            f"{_MBCONV}.proj.1",
            f"{_MBCONV}.layers.pre_norm",
            f"{_MBCONV}.layers.conv_a.0",
            f"{_MBCONV}.layers.conv_a.1",
            f"{_MBCONV}.layers.conv_b.0",
            f"{_MBCONV}.layers.conv_b.1",
            f"{_MBCONV}.layers.squeeze_excitation.fc1",
            f"{_MBCONV}.layers.squeeze_excitation.fc2",
            f"{_MBCONV}.layers.conv_c",
            *("classifier.2", "classifier.3", "classifier.5"),
        ),
        *_transformer("window", f"{_LAYERS}.window_attention", _TORCHVISION),
        *_transformer("grid", f"{_LAYERS}.grid_attention", _TORCHVISION),
    ),
)
FORMATS = (OURS, TIMM, TIMM_OWN, TORCHVISION)
