"""Checkpoints of LeViT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import SAME, Format, NumberedFormat, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE


def _read_heads(parts: Sequence[Tensor], projection: Any) -> Tensor:
    # A count of batches has no rows; nor has a layer that the model does not have, which is told later.
    if not parts[0].ndim or projection is None:
        return parts[0]
    heads = parts[0].unflatten(0, (projection.heads, -1)).split(projection.widths, dim=1)
    return torch.cat([part.flatten(0, 1) for part in heads])


def _write_heads(tensor: Tensor, projection: Any) -> tuple[Tensor]:
    if not tensor.ndim:
        return (tensor,)
    parts = tensor.split([projection.heads * width for width in projection.widths])
    heads = [part.unflatten(0, (projection.heads, -1)) for part in parts]
    return (torch.cat(heads, dim=1).flatten(0, 1),)


# Rows of all projections of one head stand together in theirs; in ours those of all heads of a projection.
HEADS = Transform(_read_heads, _write_heads)
POINTWISE_HEADS = Transform(
    lambda parts, projection: _read_heads([parts[0].flatten(1)], projection),
    lambda tensor, projection: (_write_heads(tensor, projection)[0][:, :, None, None],),
)


@dataclass(frozen=True, kw_only=True)
class Convolutional(Format):
    """A layout that has 1 x 1 convolutions under the names of the linear layers that they equal."""

    def strip_prefix(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the state dict under bare names, or None for another format; see `Format.strip_prefix`."""
        bare = super().strip_prefix(state)
        return None if bare is None or bare[self.marks[0]].ndim != 4 else bare


@dataclass(frozen=True, kw_only=True)
class FlatFormat(NumberedFormat):
    """A layout that numbers attentions and feed-forwards in one sequence, and has the others' rules.

    Args:
        layer: name of a layer, from its `stage`, its number there, `inner`, and that in the model, `outer`.
        residual: name of the branch in a layer that is a residual.
    """

    layer: str
    residual: str

    def places(self, model: Any) -> dict[str, str]:
        """Return the prefix of each layer's names and that in the rules."""
        found: dict[str, str] = {}
        for i, stage in enumerate(model.stages):
            blocks = range(len(stage.blocks))
            layers = [f"stages.{i}.blocks.{j}.{part}." for j in blocks for part in ("attn", "mlp")]
            if i + 1 < len(model.stages):
                layers += [f"stages.{i + 1}.down.attn.", f"stages.{i + 1}.down.mlp."]
            for inner, place in enumerate(layers):
                theirs = self.layer.format(stage=i, inner=inner, outer=len(found))
                branch = "" if place.endswith("down.attn.") else f".{self.residual}"
                found[f"{theirs}{branch}."] = place
        return found


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a layout calls the parts.

    Args:
        linear: a linear layer or convolution.
        norm: the batch norm behind it, or in front of a classifier.
        stem: the convolutions of the stem.
        attn: the projections of an attention: to_qkv, to_kv, to_q and to_out.
        mlp: the layers of a feed-forward.
        heads: the classifier and the one that learns from a teacher.
        classifier: the linear layer of a classifier.
        down: the attention and the feed-forward between two stages.
    """

    linear: str
    norm: str
    stem: tuple[str, ...]
    attn: tuple[str, str, str, str]
    mlp: tuple[str, str]
    heads: tuple[str, str]
    classifier: str
    down: tuple[str, str] = ("stages.{i}.down.attn", "stages.{i}.down.mlp")


def _rules(names: Names, *, convolutional: bool = False) -> tuple[Rule, ...]:
    """Return the table of a layout."""
    flat, heads = (POINTWISE, POINTWISE_HEADS) if convolutional else (SAME, HEADS)
    blocks = ("stages.{i}.blocks.{j}", "stages.{i}.blocks.{j}")
    attentions = (
        (f"{blocks[0]}.attention", f"{blocks[1]}.attn"),
        ("stages.{i}.down.attention", names.down[0]),
    )
    mlps = (
        (f"{blocks[0]}.feedforward", f"{blocks[1]}.mlp"),
        ("stages.{i}.down.feedforward", names.down[1]),
    )
    split = tuple(zip(("to_qkv", "to_kv", "to_q"), names.attn, strict=False))
    whole = tuple(zip(("to_hidden", "to_out"), names.mlp, strict=True))

    def layer(ours: str, theirs: str, weight: Transform, vector: Transform = SAME) -> tuple[Rule, Rule]:
        return (
            Rule(f"{ours}.linear.weight", f"{theirs}.{names.linear}.weight", weight),
            Rule(f"{ours}.norm.{{name}}", f"{theirs}.{names.norm}.{{name}}", vector),
        )

    rules: list[Rule] = []
    for i, theirs in enumerate(names.stem):
        ours = f"stem.layers.{i}"
        rules.append(Rule(f"{ours}.conv.weight", f"{theirs}.{names.linear}.weight"))
        rules.append(Rule(f"{ours}.norm.{{name}}", f"{theirs}.{names.norm}.{{name}}"))
    for ours, theirs in attentions:
        for part, name in split:
            rules += layer(f"{ours}.{part}", f"{theirs}.{name}", heads, HEADS)
        rules += layer(f"{ours}.to_out", f"{theirs}.{names.attn[3]}", flat)
        rules.append(Rule(f"{ours}.bias.table", f"{theirs}.attention_biases"))
    for ours, theirs in mlps:
        for part, name in whole:
            rules += layer(f"{ours}.{part}", f"{theirs}.{name}", flat)
    for ours, theirs in zip(("head.distilled", "head"), reversed(names.heads), strict=True):
        rules.append(Rule(f"{ours}.norm.{{name}}", f"{theirs}.{names.norm}.{{name}}"))
        rules.append(Rule(f"{ours}.linear.{{p}}", f"{theirs}.{names.classifier}.{{p}}"))
    return tuple(rules)


UNUSED = ("{name}.attention_bias_idxs",)
OURS = own_format("stages.0.blocks.0.attention.to_qkv.linear.weight")
TIMM_NAMES = Names(
    linear="linear",
    norm="bn",
    stem=tuple(f"stem.conv{i}" for i in (1, 2, 3, 4)),
    attn=("qkv", "kv", "q.ln", "proj.ln"),
    mlp=("ln1", "ln2"),
    heads=("head", "head_dist"),
    classifier="linear",
    down=("stages.{i}.downsample.attn_downsample", "stages.{i}.downsample.mlp"),
)
MARKS = ("stages.0.blocks.0.attn.qkv.linear.weight",)
TIMM = Format(name="timm", marks=MARKS, unused=UNUSED, rules=_rules(TIMM_NAMES))
TIMM_CONV = Convolutional(
    name="timm, convolutions",
    marks=MARKS,
    unused=UNUSED,
    rules=_rules(TIMM_NAMES, convolutional=True),
)
AUTHORS = FlatFormat(
    name="LeViT",
    marks=("blocks.0.m.qkv.c.weight",),
    unused=UNUSED,
    layer="blocks.{outer}",
    residual="m",
    rules=_rules(
        Names(
            linear="c",
            norm="bn",
            stem=tuple(f"patch_embed.{i}" for i in (0, 2, 4, 6)),
            attn=("qkv", "kv", "q.1", "proj.1"),
            mlp=("0", "2"),
            heads=("head", "head_dist"),
            classifier="l",
        )
    ),
)
TRANSFORMERS = FlatFormat(
    name="transformers",
    marks=("encoder.stages.0.layers.0.module.queries_keys_values.linear.weight",),
    prefix="levit.",
    unused=UNUSED,
    layer="encoder.stages.{stage}.layers.{inner}",
    residual="module",
    rules=_rules(
        Names(
            linear="linear",
            norm="batch_norm",
            stem=(),
            attn=("queries_keys_values", "keys_values", "queries", "projection"),
            mlp=("linear_up", "linear_down"),
            heads=("/classifier", "/classifier_distill"),
            classifier="linear",
        )
    )
    + tuple(
        Rule(f"stem.layers.{i}.{ours}", f"patch_embeddings.embedding_layer_{i + 1}.{theirs}")
        for i in range(4)
        for ours, theirs in (("conv.weight", "convolution.weight"), ("norm.{name}", "batch_norm.{name}"))
    ),
)
FORMATS = (OURS, TIMM_CONV, TIMM, AUTHORS, TRANSFORMERS)
