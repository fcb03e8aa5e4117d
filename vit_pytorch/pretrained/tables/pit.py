"""Checkpoints of PiT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.blocks.{j}"
THEIRS = "transformers.{i}.blocks.{j}"
STAGES = range(1, 8)

# Positions as a map (1, channels, height, width).
MAP = Transform(
    lambda parts, module: parts[0].flatten(2).transpose(1, 2),
    lambda table, positions: (table.transpose(1, 2).unflatten(2, positions.grid),),
)


@dataclass(frozen=True, kw_only=True)
class HeadFormat(Format):
    """A layout in which the classifier has the same name with and without a second, distilled one."""

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; see `Format.read`."""
        found, unused = super().read(state, model)
        # One classifier of two is not that of a model with one.
        if "head.distilled.weight" in found and "head.weight" in found:
            for kind in ("weight", "bias"):
                found[f"head.classifier.{kind}"] = found.pop(f"head.{kind}")
        return found, unused


_COMMON = (
    Rule("patch_embed.{p}", "patch_embed.conv.{p}"),
    Rule("positions.table", "pos_embed", MAP),
    Rule("tokens", "cls_token"),
    *timm_block(BLOCK, THEIRS),
    Rule("norm.{p}", "norm.{p}"),
    Rule("head.{p}", "head.{p}"),
    Rule("head.classifier.{p}", "head.{p}"),
    Rule("head.distilled.{p}", "head_dist.{p}"),
)

OURS = own_format("stages.0.blocks.0.attention.to_qkv.weight")
AUTHORS = HeadFormat(
    name="pit",
    marks=("pools.0.conv.weight",),
    rules=(*_COMMON, *(Rule(f"stages.{i}.down.{{name}}", f"pools.{i - 1}.{{name}}") for i in STAGES)),
)
TIMM = HeadFormat(
    name="timm",
    marks=("transformers.0.blocks.0.attn.qkv.weight",),
    rules=(*_COMMON, Rule("stages.{i}.down.{name}", "transformers.{i}.pool.{name}")),
)
FORMATS = (OURS, AUTHORS, TIMM)
