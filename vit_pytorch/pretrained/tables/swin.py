"""Checkpoints of Swin, and what they have in common with those of Swin V2."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.blocks.{j}"
BRANCH = f"{BLOCK}.attention.attention"
THEIRS = "layers.{i}.blocks.{j}"
THEIR_BLOCK = "encoder.layers.{i}.blocks.{j}"
TABLE = "relative_position_bias_table"
STAGES = range(8)
# Buffers, in files of the authors' code and of earlier versions of timm and transformers.
BUFFERS = ("relative_position_index", "relative_coords_table")

AUTHORS_UNUSED = (f"{THEIRS}.attn_mask", *(f"{THEIRS}.attn.{name}" for name in BUFFERS))
TIMM_BLOCK = timm_block(BLOCK, THEIRS, attention="attention.attention")


def merging(theirs: str, shift: int) -> tuple[Rule, ...]:
    """Return the rules of the layers that merge cells.

    Args:
        theirs: what stands before the number of a stage of theirs.
        shift: by how much that is lower than ours: 1 where merging ends a stage instead of beginning one.
    """
    return tuple(
        Rule(f"stages.{i + shift}.down.{{name}}", f"{theirs}layers.{i}.downsample.{{name}}") for i in STAGES
    )


def timm_rules(*block: Rule, shift: int) -> tuple[Rule, ...]:
    """Return the names of timm, or, with a shift of 1, those of the authors after which timm names.

    Args:
        block: the rules of a block.
        shift: 1 where merging ends a stage.
    """
    return (
        Rule("stem.0.layers.0.{p}", "patch_embed.proj.{p}"),
        Rule("stem.1.{p}", "patch_embed.norm.{p}"),
        *merging("", shift),
        *block,
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}" if shift else "head.fc.{p}"),
    )


def transformers_rules(*block: Rule) -> tuple[Rule, ...]:
    """Return transformers' names.

    Args:
        block: the rules of a block, apart from its norms.
    """
    return (
        Rule("stem.0.layers.0.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Rule("stem.1.{p}", "embeddings.norm.{p}"),
        *merging("encoder.", 1),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{THEIR_BLOCK}.layernorm_before.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{THEIR_BLOCK}.layernorm_after.{{p}}"),
        *block,
        Rule("norm.{p}", "layernorm.{p}"),
        Rule("head.{p}", "/classifier.{p}"),
    )


def _linears(
    qkv: str, names: tuple[str, ...], out: str, hidden: str, after: str, table: str
) -> tuple[Rule, ...]:
    """Return the rules of the linear layers and the biases of transformers' blocks."""
    apart = tuple(f"{THEIR_BLOCK}.attention.{qkv.format(name)}.{{p}}" for name in names)
    return (
        Rule(f"{BRANCH}.to_qkv.{{p}}", apart, stack(3)),
        Rule(f"{BRANCH}.to_out.{{p}}", f"{THEIR_BLOCK}.attention.{out}.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIR_BLOCK}.{hidden}.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIR_BLOCK}.{after}.{{p}}"),
        Rule(f"{BLOCK}.attention.bias.table", f"{THEIR_BLOCK}.attention.{table}.{TABLE}"),
    )


BIAS = Rule(f"{BLOCK}.attention.bias.table", f"{THEIRS}.attn.{TABLE}")
OURS = own_format("stages.0.blocks.0.attention.bias.table")
AUTHORS = Format(
    name="microsoft",
    marks=("layers.0.downsample.reduction.weight",),
    unused=AUTHORS_UNUSED,
    rules=timm_rules(*TIMM_BLOCK, BIAS, shift=1),
)
TIMM = Format(
    name="timm",
    marks=(f"layers.0.blocks.0.attn.{TABLE}",),
    unused=AUTHORS_UNUSED,
    rules=timm_rules(*TIMM_BLOCK, BIAS, shift=0),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=(f"encoder.layers.0.blocks.0.attention.relative_position_bias.{TABLE}",),
    prefix="swin.",
    rules=transformers_rules(
        *_linears("{}_proj", ("q", "k", "v"), "o_proj", "mlp.fc1", "mlp.fc2", "relative_position_bias")
    ),
)
# What is on the Hub, and what `save_pretrained` writes.
FILES = Format(
    name="transformers-files",
    marks=(f"encoder.layers.0.blocks.0.attention.self.{TABLE}",),
    prefix="swin.",
    unused=(f"{THEIR_BLOCK}.attention.self.relative_position_index",),
    rules=transformers_rules(
        *_linears(
            "self.{}",
            ("query", "key", "value"),
            "output.dense",
            "intermediate.dense",
            "output.dense",
            "self",
        )
    ),
)
# The names of the authors end those of transformers.
FORMATS = (OURS, TRANSFORMERS, FILES, AUTHORS, TIMM)
