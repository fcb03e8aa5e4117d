"""Checkpoints of LocalViT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "encoder.blocks.{i}"
LOCAL = f"{BLOCK}.feedforward.branch"
THEIRS = "blocks.{i}.conv.conv"
# The last layer and its norm, which come one place earlier where there is no gate.
BEHIND = {f".conv.conv.{place}.": f".conv.conv.{place + 1}." for place in (6, 7)}


@dataclass(frozen=True, kw_only=True)
class NumberedFormat(Format):
    """A layout that numbers the layers of the feed-forward; the rules have the numbers with a gate."""

    def read(self, state: Mapping[str, Tensor], model: Any) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; see `Format.read`."""
        gated = any(".conv.conv.8." in name for name in state)
        return super().read(state if gated else _move(state, BEHIND), model)

    def write(self, state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """Translate our state dict to this format; see `Format.write`."""
        written = super().write(state, model)
        gated = any(".conv.conv.6." in name for name in written)
        return written if gated else _move(written, {moved: place for place, moved in BEHIND.items()})


def _move(state: Mapping[str, Tensor], places: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename layers from one place to another."""
    moved = {}
    for name, tensor in state.items():
        place = next((place for place in places if place in name), None)
        moved[name if place is None else name.replace(place, places[place])] = tensor
    return moved


OURS = own_format("encoder.blocks.0.feedforward.branch.expand.weight")
AUTHORS = NumberedFormat(
    name="LocalViT",
    marks=("blocks.0.conv.conv.0.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        *(rule for rule in timm_block(BLOCK, "blocks.{i}") if ".attention." in rule.names[0]),
        Rule(f"{LOCAL}.expand.weight", f"{THEIRS}.0.weight", POINTWISE),
        Rule(f"{LOCAL}.depthwise.layers.0.{{name}}", f"{THEIRS}.1.{{name}}"),
        Rule(f"{LOCAL}.depthwise.layers.2.weight", f"{THEIRS}.3.weight"),
        Rule(f"{LOCAL}.depthwise.layers.3.{{name}}", f"{THEIRS}.4.{{name}}"),
        Rule(f"{LOCAL}.depthwise.layers.5.squeeze.{{p}}", f"{THEIRS}.6.fc.0.{{p}}"),
        Rule(f"{LOCAL}.depthwise.layers.5.excite.{{p}}", f"{THEIRS}.6.fc.2.{{p}}"),
        Rule(f"{LOCAL}.depthwise.layers.5.conv.weight", f"{THEIRS}.6.conv.weight"),
        Rule(f"{LOCAL}.project.weight", f"{THEIRS}.7.weight", POINTWISE),
        Rule(f"{LOCAL}.norm.layers.0.{{name}}", f"{THEIRS}.8.{{name}}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS)
