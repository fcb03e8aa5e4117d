"""Checkpoints of Hiera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vit_pytorch.hiera import MaskUnitPositions
from vit_pytorch.pretrained.rules import Format, NumberedFormat, Rule, Transform, own_format

BLOCK = "stages.{i}.blocks.{j}"
# What the rules call a block of theirs, which numbers those of all stages in one row.
THEIRS = "rows.{i}.{j}"
NAMES = (
    (f"{BLOCK}.attention.attention.to_qkv", "attn.qkv"),
    (f"{BLOCK}.attention.attention.to_out", "attn.proj"),
    (f"{BLOCK}.feedforward.to_hidden", "mlp.fc1"),
    (f"{BLOCK}.feedforward.to_out", "mlp.fc2"),
    (f"{BLOCK}.shortcut", "proj"),
)


def _rows(parts: Sequence[Tensor], module: Any) -> Tensor:
    (table,) = parts
    return table.flatten(2).mT if table.ndim == 4 else table


def _maps(tensor: Tensor, stem: Any) -> Sequence[Tensor]:
    if isinstance(stem.positions, MaskUnitPositions):
        return (tensor.mT.unflatten(2, stem.positions.grid),)
    return (tensor,)


# What is stretched lies as a map.
TABLE = Transform(_rows, _maps)
WITHIN = Transform(_rows, lambda tensor, stem: (tensor.mT.unflatten(2, stem.positions.unit),))


@dataclass(frozen=True, kw_only=True)
class OneRow(NumberedFormat):
    """A layout that numbers the blocks of all stages in one row."""

    def places(self, model: Any) -> dict[str, str]:
        """Return what the rules call the blocks; see `NumberedFormat.places`."""
        found: dict[str, str] = {}
        for i, stage in enumerate(model.stages):
            for j in range(len(stage.blocks)):
                found[f"blocks.{len(found)}."] = f"{THEIRS.format(i=i, j=j)}."
        return found


OURS = own_format("stages.0.blocks.0.attention.attention.to_qkv.weight")
TIMM = OneRow(
    name="timm",
    marks=("blocks.0.attn.qkv.weight",),
    rules=(
        Rule("stem.embed.layers.0.{p}", "patch_embed.proj.{p}"),
        Rule("stem.positions.table", "pos_embed", TABLE),
        Rule("stem.positions.within", "pos_embed_win", WITHIN),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{THEIRS}.norm1.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{THEIRS}.norm2.{{p}}"),
        *(Rule(f"{ours}.{{p}}", f"{THEIRS}.{theirs}.{{p}}") for ours, theirs in NAMES),
        Rule(f"{BLOCK}.scale1.gamma", f"{THEIRS}.ls1.gamma"),
        Rule(f"{BLOCK}.scale2.gamma", f"{THEIRS}.ls2.gamma"),
        Rule("fc_norm.{p}", "head.norm.{p}"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
AUTHORS = replace(
    TIMM,
    name="facebookresearch",
    marks=("head.projection.weight", "encoder_norm.weight"),
    # Of the masked autoencoder.
    unused=("decoder_{name}", "mask_token", "multi_scale_fusion_heads.{name}"),
    rules=(
        Rule("stem.positions.table", "pos_embed_abs", TABLE),
        Rule("fc_norm.{p}", "norm.{p}"),
        Rule("fc_norm.{p}", "encoder_norm.{p}"),
        Rule("head.{p}", "head.projection.{p}"),
        *TIMM.rules,
    ),
)
LAYER = "encoder.stages.{i}.layers.{j}"
TRANSFORMERS = Format(
    name="transformers",
    marks=("embeddings.patch_embeddings.projection.weight",),
    prefix="hiera.",
    rules=(
        Rule("stem.embed.layers.0.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Rule("stem.positions.table", "embeddings.position_embeddings"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{LAYER}.layernorm_before.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{LAYER}.layernorm_after.{{p}}"),
        *(Rule(f"{ours}.{{p}}", f"{LAYER}.{theirs}.{{p}}") for ours, theirs in NAMES),
        Rule("fc_norm.{p}", "pooler.layernorm.{p}"),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS, TIMM, TRANSFORMERS)
