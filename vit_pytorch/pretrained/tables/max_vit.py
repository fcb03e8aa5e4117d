"""Checkpoints of MaxViT."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import SAME, Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.mbconv import (
    BY_HEAD,
    around_rules,
    bias_rules,
    convnext_rules,
    mbconv_rules,
    scale_rules,
)

BLOCK = "stages.{i}.blocks.{j}"

# TensorFlow's tables have axes for the heads, the rows and the columns of the offsets key - query; ours have
# one axis for the offsets query - key, in front of the heads. Their extents tell the window, so that one of
# another window leaves here as it is but for the order.
OFFSETS = Transform(
    lambda parts, attention: parts[0].flip(1, 2).permute(1, 2, 0),
    lambda table, attention: (
        table.T.unflatten(1, [2 * extent - 1 for extent in attention.bias.window]).flip(1, 2),
    ),
)
TRANSFORMER = (
    "norm1",
    "attention.attention.to_qkv",
    "attention.attention.to_out",
    "norm2",
    "feedforward.to_hidden",
    "feedforward.to_out",
)


def _transformer(part: str, block: str, theirs: tuple[str, ...], qkv: Transform = SAME) -> tuple[Rule, ...]:
    """Return the rules of a transformer block.

    Args:
        part: what it is called here.
        block: what it is called there.
        theirs: their names of its layers, in the order of `TRANSFORMER`.
        qkv: how the projection of queries, keys and values is read.
    """
    ours = f"{BLOCK}.{part}"
    return tuple(
        Rule(f"{ours}.{name}.{{p}}", f"{block}.{other}.{{p}}", qkv if name.endswith("to_qkv") else SAME)
        for name, other in zip(TRANSFORMER, theirs, strict=True)
    )


_BLOCK = "stages.{i}.blocks.{j}"
_TIMM = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_LAYERS = "blocks.{i}.layers.{j}.layers"
_MBCONV = f"{_LAYERS}.MBconv"
_TORCHVISION = (
    *("attn_layer.0", "attn_layer.1.to_qkv", "attn_layer.1.merge"),
    *("mlp_layer.0", "mlp_layer.1", "mlp_layer.3"),
)
PARTS = (("window", "attn_block"), ("grid", "attn_grid"))

# The second is also in the models that have attention within grids alone.
OURS = replace(
    own_format("stages.0.blocks.0.window.attention.attention.to_qkv.weight"),
    marks=(
        "stages.0.blocks.0.window.attention.attention.to_qkv.weight",
        "stages.0.blocks.0.grid.norm1.weight",
    ),
)
TIMM = Format(
    name="timm",
    # Only the models that came of the authors have this bias.
    marks=("stages.0.blocks.0.conv.conv3_1x1.bias",),
    rules=(
        *around_rules(),
        *mbconv_rules(f"{BLOCK}.conv", f"{_BLOCK}.conv"),
        *(
            rule
            for ours, theirs in PARTS
            for rule in (
                *_transformer(ours, f"{_BLOCK}.{theirs}", _TIMM),
                Rule(
                    f"{BLOCK}.{ours}.attention.bias.table",
                    f"{_BLOCK}.{theirs}.attn.rel_pos.relative_position_bias_table",
                    OFFSETS,
                ),
            )
        ),
    ),
)
TIMM_OWN = Format(
    name="timm, its own variants",
    marks=("stages.0.blocks.0.attn_grid.attn.qkv.weight",),
    rules=(
        *around_rules(),
        *mbconv_rules(f"{BLOCK}.conv", f"{_BLOCK}.conv"),
        *convnext_rules(f"{BLOCK}.conv", f"{_BLOCK}.conv"),
        *(
            rule
            for ours, theirs in PARTS
            for rule in (
                *_transformer(ours, f"{_BLOCK}.{theirs}", _TIMM, BY_HEAD),
                *scale_rules(f"{BLOCK}.{ours}", f"{_BLOCK}.{theirs}"),
                *bias_rules(f"{BLOCK}.{ours}.attention.bias", f"{_BLOCK}.{theirs}.attn.rel_pos"),
            )
        ),
        Rule("norm.{p}", "norm.{p}"),
    ),
)
TIMM_SIDE_BY_SIDE = Format(
    name="timm, attention side by side",
    marks=("stages.0.blocks.0.attn.attn_grid.qkv.weight",),
    rules=(
        *around_rules(),
        *(
            rule
            for conv in ("conv.0", "conv.1")
            for rule in mbconv_rules(f"{BLOCK}.{conv}", f"{_BLOCK}.{conv}")
        ),
        *(
            Rule(f"{BLOCK}.grid.{name}.{{p}}", f"{_BLOCK}.attn.{other}.{{p}}")
            for name, other in zip(TRANSFORMER, _TIMM, strict=True)
            if not name.startswith("attention")
        ),
        *scale_rules(f"{BLOCK}.grid", f"{_BLOCK}.attn"),
        *(
            rule
            for part, theirs in PARTS
            for ours, other in [(f"{BLOCK}.grid.attention.{part}", f"{_BLOCK}.attn.{theirs}")]
            for rule in (
                Rule(f"{ours}.attention.to_qkv.{{p}}", f"{other}.qkv.{{p}}", BY_HEAD),
                Rule(f"{ours}.attention.to_out.{{p}}", f"{other}.proj.{{p}}"),
                *bias_rules(f"{ours}.bias", f"{other}.rel_pos"),
            )
        ),
        Rule("norm.{p}", "norm.{p}"),
    ),
)
TORCHVISION = Format(
    name="torchvision",
    marks=("blocks.0.layers.0.layers.MBconv.layers.conv_a.0.weight",),
    unused=tuple(
        f"{_LAYERS}.{part}_attention.attn_layer.1.relative_position_index" for part in ("window", "grid")
    ),
    rules=(
        *around_rules(["stem.0.0", "stem.0.1", "stem.1.0", "classifier.2", "classifier.3", "classifier.5"]),
        *mbconv_rules(
            f"{BLOCK}.conv",
            _MBCONV,
            (
                *("proj.1", "layers.pre_norm", "layers.conv_a.0", "layers.conv_a.1", "layers.conv_b.0"),
                *("layers.conv_b.1", "layers.squeeze_excitation.fc1", "layers.squeeze_excitation.fc2"),
                "layers.conv_c",
            ),
        ),
        *(
            rule
            for part in ("window", "grid")
            for rule in (
                *_transformer(part, f"{_LAYERS}.{part}_attention", _TORCHVISION),
                Rule(
                    f"{BLOCK}.{part}.attention.bias.table",
                    f"{_LAYERS}.{part}_attention.attn_layer.1.relative_position_bias_table",
                ),
            )
        ),
    ),
)
FORMATS = (OURS, TIMM, TIMM_OWN, TIMM_SIDE_BY_SIDE, TORCHVISION)
