"""Checkpoints of the U-ViT; the authors' are noise predictors, whose backbone a classifier can start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor, nn

from vit_pytorch.pretrained.rules import NumberedFormat, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

MARK = "blocks.0.attention.to_qkv.weight"
AUTHORS_MARK = "mid_block.attn.qkv.weight"
DECODER = ("decoder_pred.{p}", "final_layer.{p}", "time_embed.{i}.{p}", "label_emb.weight")


class LongSkipFormat(NumberedFormat):
    """A layout that numbers the blocks of each half on its own; to the rules, they are one row of
    `layers`."""

    def places(self, model: Any) -> dict[str, str]:
        """Return where blocks are in the sequence of all; see `NumberedFormat.places`."""
        # A noise predictor has the blocks in its encoder.
        blocks = getattr(model, "encoder", model).blocks
        middle = len(blocks) // 2
        first = {f"in_blocks.{layer}.": f"layers.{layer}." for layer in range(middle)}
        second = {f"out_blocks.{layer}.": f"layers.{middle + 1 + layer}." for layer in range(middle)}
        return {**first, "mid_block.": f"layers.{middle}.", **second}


class BackboneFormat(LongSkipFormat):
    """A layout of which a classifier takes the backbone."""

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Refuse: a classifier has no token for the time.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"the format of {self.name} is of noise predictors; a classifier has no place for a time"
        )


def backbone(ours: str) -> tuple[Rule, ...]:
    """Return the rules of what both have but for the positions."""
    block = f"{ours}blocks.{{i}}"
    return (
        Rule(f"{ours}patch_embed.proj.{{p}}", "patch_embed.proj.{p}"),
        *timm_block(block, "layers.{i}"),
        Rule(f"{block}.merge.{{p}}", "layers.{i}.skip_linear.{p}"),
        Rule(f"{ours}norm.{{p}}", "norm.{p}"),
    )


def _read_patches(parts: Sequence[Tensor], positions: Any) -> Tensor:
    """Return the places of patches alone, whose grid is square; one or two are those of time and label."""
    rows = parts[0].shape[1]
    return parts[0][:, rows - isqrt(rows - 1) ** 2 :]


PATCHES = Transform(_read_patches, lambda tensor, positions: (tensor,))

OURS = own_format(MARK)
FORMATS = (
    OURS,
    BackboneFormat(
        name="U-ViT",
        marks=(AUTHORS_MARK,),
        unused=DECODER,
        rules=(*backbone(""), Rule("positions.table", "pos_embed", PATCHES)),
    ),
)
