"""Checkpoints of MetaFormer: PoolFormer, ConvFormer, CAFormer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_pytorch.layers.windows import GroupAttention
from vit_pytorch.pretrained.rules import SAME, Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

BLOCK = "stages.{i}.blocks.{j}"
LAYERS = ("to_hidden", "to_out")
STAGES = range(8)


@dataclass(frozen=True, kw_only=True)
class MapFormat(Format):
    """A layout whose linear layers are 1 x 1 convolutions, but for stages of attention."""

    def write(self, state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Translate our state dict to this format; see `Format.write`."""
        attending = tuple(
            f"stages.{i}.blocks."
            for i, stage in enumerate(model.stages)
            if isinstance(stage.blocks[0].attention, GroupAttention)
        )
        written = super().write(state, model)
        return {
            name: tensor.flatten(1) if name.startswith(attending) and tensor.ndim == 4 else tensor
            for name, tensor in written.items()
        }


def _feedforward(ours: str, theirs: str, dense: Transform) -> tuple[Rule, ...]:
    """Return the rules of two linear layers.

    Args:
        theirs: their names of the layers, without the number.
        dense: what happens to the weights.
    """
    rules = []
    for k, part in enumerate(LAYERS, 1):
        rules.append(Rule(f"{ours}.{part}.weight", f"{theirs}{k}.weight", dense))
        rules.append(Rule(f"{ours}.{part}.bias", f"{theirs}{k}.bias"))
    return tuple(rules)


def _block(theirs: str, dense: Transform) -> tuple[Rule, ...]:
    """Return the rules of the blocks of the baselines.

    Args:
        theirs: their name of a block.
        dense: what happens to the weights of linear layers.
    """
    mixer = f"{theirs}.token_mixer"
    return (
        *(Rule(f"{BLOCK}.norm{k}.{{p}}", f"{theirs}.norm{k}.{{p}}") for k in (1, 2)),
        *(Rule(f"{BLOCK}.scale{k}.gamma", f"{theirs}.layer_scale{k}.scale") for k in (1, 2)),
        *(Rule(f"{BLOCK}.around{k}.gamma", f"{theirs}.res_scale{k}.scale") for k in (1, 2)),
        *_feedforward(f"{BLOCK}.feedforward", f"{theirs}.mlp.fc", dense),
        Rule(f"{BLOCK}.feedforward.act.{{name}}", f"{theirs}.mlp.act.{{name}}"),
        *_feedforward(f"{BLOCK}.attention", f"{mixer}.pwconv", dense),
        Rule(f"{BLOCK}.attention.act.{{name}}", f"{mixer}.act1.{{name}}"),
        Rule(f"{BLOCK}.attention.conv.layers.0.weight", f"{mixer}.dwconv.weight"),
        Rule(f"{BLOCK}.attention.attention.to_qkv.weight", f"{mixer}.qkv.weight"),
        Rule(f"{BLOCK}.attention.attention.to_out.weight", f"{mixer}.proj.weight"),
    )


def _head(theirs: str) -> tuple[Rule, ...]:
    """Return the rules of the classifier, which is linear or has a hidden layer.

    Args:
        theirs: their name of it.
    """
    return (
        Rule("head.{p}", f"{theirs}.{{p}}"),
        *_feedforward("head", f"{theirs}.fc", SAME),
        Rule("head.sub_norm.{p}", f"{theirs}.norm.{{p}}"),
    )


def _first_block(ours: str, theirs: str, norms: tuple[str, str], layers: str) -> tuple[Rule, ...]:
    """Return the rules of the blocks of the first PoolFormer.

    Args:
        ours: our name of a block.
        theirs: their name of a block.
        norms: their names of its norms.
        layers: their name of its linear layers, without the number.
    """
    rules = []
    for k, norm in enumerate(norms, 1):
        rules.append(Rule(f"{ours}.norm{k}.{{p}}", f"{theirs}.{norm}.{{p}}"))
        rules.append(Rule(f"{ours}.scale{k}.gamma", f"{theirs}.layer_scale_{k}"))
    return (*rules, *_feedforward(f"{ours}.feedforward", f"{theirs}.{layers}", POINTWISE))


OURS = own_format("stem.conv.layers.0.weight")
TIMM = MapFormat(
    name="timm",
    marks=("stem.conv.weight",),
    rules=(
        Rule("stem.conv.layers.0.{p}", "stem.conv.{p}"),
        Rule("stem.norm.{p}", "stem.norm.{p}"),
        Rule("stages.{i}.down.norm.{p}", "stages.{i}.downsample.norm.{p}"),
        Rule("stages.{i}.down.conv.layers.0.{p}", "stages.{i}.downsample.conv.{p}"),
        *_block(BLOCK, POINTWISE),
        Rule("fc_norm.{p}", "head.norm.{p}"),
        *_head("head.fc"),
    ),
)
AUTHORS = Format(
    name="metaformer",
    marks=("downsample_layers.0.conv.weight",),
    rules=(
        Rule("stem.conv.layers.0.{p}", "downsample_layers.0.conv.{p}"),
        Rule("stem.norm.{p}", "downsample_layers.0.post_norm.{p}"),
        Rule("stages.{i}.down.norm.{p}", "downsample_layers.{i}.pre_norm.{p}"),
        Rule("stages.{i}.down.conv.layers.0.{p}", "downsample_layers.{i}.conv.{p}"),
        *_block("stages.{i}.{j}", SAME),
        Rule("fc_norm.{p}", "norm.{p}"),
        *_head("head"),
    ),
)
# The authors' first PoolFormer, and transformers', whose final norm is of the last map.
POOLFORMER = Format(
    name="poolformer",
    marks=("patch_embed.proj.weight",),
    rules=(
        Rule("stem.conv.layers.0.{p}", "patch_embed.proj.{p}"),
        *(
            Rule(f"stages.{i}.down.conv.layers.0.{{p}}", f"network.{2 * i - 1}.proj.{{p}}")
            for i in STAGES[1:]
        ),
        *(
            rule
            for i in STAGES
            for rule in _first_block(
                f"stages.{i}.blocks.{{j}}", f"network.{2 * i}.{{j}}", ("norm1", "norm2"), "mlp.fc"
            )
        ),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.patch_embeddings.0.projection.weight",),
    prefix="poolformer.",
    rules=(
        Rule("stem.conv.layers.0.{p}", "encoder.patch_embeddings.0.projection.{p}"),
        Rule("stages.{i}.down.conv.layers.0.{p}", "encoder.patch_embeddings.{i}.projection.{p}"),
        *_first_block(BLOCK, "encoder.block.{i}.{j}", ("before_norm", "after_norm"), "output.conv"),
        Rule("norm.{p}", "/norm.{p}"),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, TIMM, AUTHORS, POOLFORMER, TRANSFORMERS)
