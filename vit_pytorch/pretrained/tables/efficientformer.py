"""Checkpoints of EfficientFormer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

from vit_pytorch.efficientformer import BiasedAttention
from vit_pytorch.pretrained.rules import NumberedFormat, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.levit import HEADS
from vit_pytorch.pretrained.tables.pit import HeadFormat

BLOCK = "stages.{i}.blocks.{j}"
# What the rules call their blocks, and the feed-forwards of blocks with attention, whose layers are linear.
THEIRS = "blocks.{i}.{j}"
LINEAR = "linear.{i}.{j}"
INDEX = "attention_bias_idxs"
LATER_STAGES = range(1, 8)


@dataclass(frozen=True, kw_only=True)
class FlattenedFormat(HeadFormat, NumberedFormat):
    """A layout in which the layer that flattens the map before attention counts as a block.

    Args:
        block: name of a block, from its `index`, its stage's, `stage`, and twice that, `double`.
    """

    block: str

    def blocks(self, model: Any) -> Iterator[tuple[int, int, str, Any]]:
        """Return the numbers of each block, its name in this layout, and what mixes its cells."""
        for i, stage in enumerate(model.stages):
            for j, block in enumerate(stage.blocks):
                index = j + isinstance(block.attention, BiasedAttention)
                yield i, j, self.block.format(stage=i, double=2 * i, index=index), block.attention

    def places(self, model: Any) -> dict[str, str]:
        """Return what the rules call the blocks; see `NumberedFormat.places`."""
        found = {}
        for i, j, name, mixer in self.blocks(model):
            if isinstance(mixer, BiasedAttention):
                found[f"{name}.mlp."] = f"{LINEAR.format(i=i, j=j)}."
            found[f"{name}."] = f"{THEIRS.format(i=i, j=j)}."
        return found

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format, with the numbers of offsets; see `Format.write`."""
        written = super().write(state, model)
        for _, _, name, mixer in self.blocks(model):
            if isinstance(mixer, BiasedAttention):
                cells = prod(mixer.bias.grid)
                written[f"{name}.token_mixer.{INDEX}"] = mixer.bias.index.unflatten(1, (cells, cells))[0]
        return written


def _rules(
    *, stem: tuple[tuple[str, str], ...], down: str, conv: str, scale: str, distilled: str
) -> tuple[Rule, ...]:
    """Return the table of a layout.

    Args:
        stem: names of the convolutions and norms of the stem.
        down: name of what precedes the blocks of a stage, from its number, `stage`, and `odd`, that by which
            the authors count.
        conv: name of its convolution.
        scale: name of the factors of a branch, from its number, `k`.
        distilled: name of the classifier that learns from a teacher.
    """
    rules = []
    for i, (theirs, norm) in enumerate(stem):
        rules.append(Rule(f"stem.layers.{i}.conv.{{p}}", f"{theirs}.{{p}}"))
        rules.append(Rule(f"stem.layers.{i}.norm.{{name}}", f"{norm}.{{name}}"))
    for i in LATER_STAGES:
        ours, theirs = f"stages.{i}.down.layers.0", down.format(stage=i, odd=2 * i - 1)
        rules.append(Rule(f"{ours}.conv.{{p}}", f"{theirs}.{conv}.{{p}}"))
        rules.append(Rule(f"{ours}.norm.{{name}}", f"{theirs}.norm.{{name}}"))
    for k, part in ((1, "to_hidden"), (2, "to_out")):
        layer = f"{BLOCK}.feedforward.{part}"
        rules += [
            Rule(f"{BLOCK}.norm{k}.{{p}}", f"{THEIRS}.norm{k}.{{p}}"),
            Rule(f"{BLOCK}.scale{k}.gamma", f"{THEIRS}.{scale.format(k=k)}"),
            Rule(f"{layer}.{{p}}", f"{LINEAR}.fc{k}.{{p}}"),
            Rule(f"{layer}.linear.weight", f"{THEIRS}.mlp.fc{k}.weight", POINTWISE),
            Rule(f"{layer}.linear.bias", f"{THEIRS}.mlp.fc{k}.bias"),
            Rule(f"{layer}.norm.{{name}}", f"{THEIRS}.mlp.norm{k}.{{name}}"),
        ]
    return (
        *rules,
        Rule(f"{BLOCK}.attention.to_qkv.{{p}}", f"{THEIRS}.token_mixer.qkv.{{p}}", HEADS),
        Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{THEIRS}.token_mixer.proj.{{p}}"),
        Rule(f"{BLOCK}.attention.bias.table", f"{THEIRS}.token_mixer.attention_biases"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
        Rule("head.classifier.{p}", "head.{p}"),
        Rule("head.distilled.{p}", f"{distilled}.{{p}}"),
    )


UNUSED = (f"{{name}}.{INDEX}",)
OURS = own_format("stages.0.blocks.0.feedforward.to_hidden.linear.weight")
TIMM = FlattenedFormat(
    name="timm",
    marks=("stages.1.downsample.conv.weight",),
    unused=UNUSED,
    block="stages.{stage}.blocks.{index}",
    rules=_rules(
        stem=(("stem.conv1", "stem.norm1"), ("stem.conv2", "stem.norm2")),
        down="stages.{stage}.downsample",
        conv="conv",
        scale="ls{k}.gamma",
        distilled="head_dist",
    ),
)
AUTHORS = FlattenedFormat(
    name="EfficientFormer",
    marks=("network.1.proj.weight",),
    unused=UNUSED,
    block="network.{double}.{index}",
    rules=_rules(
        stem=(("patch_embed.0", "patch_embed.1"), ("patch_embed.3", "patch_embed.4")),
        down="network.{odd}",
        conv="proj",
        scale="layer_scale_{k}",
        distilled="dist_head",
    ),
)
FORMATS = (OURS, TIMM, AUTHORS)
