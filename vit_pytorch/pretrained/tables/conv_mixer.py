"""Checkpoints of ConvMixer."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Reference, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE

OURS = own_format("stages.0.mix_channels.weight")
# Theirs is a sequence of sequences, whose parts have numbers for names.
TIMM = Format(
    name="timm",
    marks=("blocks.0.0.fn.0.weight",),
    rules=(
        Rule("stem.layers.0.{p}", "stem.0.{p}"),
        Rule("stem.layers.2.{name}", "stem.2.{name}"),
        Rule("stages.{i}.mix_places.layers.0.{p}", "blocks.{i}.0.fn.0.{p}"),
        Rule("stages.{i}.mix_places.layers.2.{name}", "blocks.{i}.0.fn.2.{name}"),
        Rule("stages.{i}.mix_channels.weight", "blocks.{i}.1.weight", POINTWISE),
        Rule("stages.{i}.mix_channels.bias", "blocks.{i}.1.bias"),
        Rule("stages.{i}.norm.layers.1.{name}", "blocks.{i}.3.{name}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES = {"dim": 24, "depth": 2, "kernel_size": 5, "patch_size": 4, "num_classes": 7}
REFERENCES = (
    Reference(
        format="timm",
        name="timm.models.convmixer.ConvMixer",
        theirs=SIZES,
        ours={**SIZES, "image_size": (32, 48)},
    ),
)
