"""Checkpoints of MViTv2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_pytorch.pretrained.rules import Format, NumberedFormat, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.blocks.{j}"
INNER = f"{BLOCK}.attention"
# What the rules call a block of the authors', who number those of all stages in one row.
ROW = "rows.{i}.{j}"


def _rules(block: str, head: str) -> tuple[Rule, ...]:
    """Return the rules of a layout.

    Args:
        block: its name of a block.
        head: its name of the classifier.
    """
    pools = [
        rule
        for part in "qkv"
        for rule in (
            Rule(f"{INNER}.pool_{part}.conv.layers.0.weight", f"{block}.attn.pool_{part}.weight"),
            Rule(f"{INNER}.pool_{part}.norm.{{p}}", f"{block}.attn.norm_{part}.{{p}}"),
        )
    ]
    return (
        Rule("stem.embed.layers.0.{p}", "patch_embed.proj.{p}"),
        Rule("stem.prefix.class_token", "cls_token"),
        *timm_block(BLOCK, block, attention="attention.attention"),
        *pools,
        Rule(f"{INNER}.positions.rows", f"{block}.attn.rel_pos_h"),
        Rule(f"{INNER}.positions.columns", f"{block}.attn.rel_pos_w"),
        Rule(f"{BLOCK}.widen1.{{p}}", f"{block}.shortcut_proj_attn.{{p}}"),
        Rule(f"{BLOCK}.widen2.{{p}}", f"{block}.shortcut_proj_mlp.{{p}}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", f"{head}.{{p}}"),
    )


@dataclass(frozen=True, kw_only=True)
class OneRow(NumberedFormat):
    """A layout that numbers the blocks of all stages in one row, with one name for both shortcuts."""

    def places(self, model: Any) -> dict[str, str]:
        """Return what the rules call the blocks and their shortcuts; see `NumberedFormat.places`."""
        found: dict[str, str] = {}
        blocks = [
            (i, j, block) for i, stage in enumerate(model.stages) for j, block in enumerate(stage.blocks)
        ]
        for number, (i, j, block) in enumerate(blocks):
            row = ROW.format(i=i, j=j)
            branch = "mlp" if block.widen1 is None else "attn"
            found[f"blocks.{number}.proj."] = f"{row}.shortcut_proj_{branch}."
            found[f"blocks.{number}."] = f"{row}."
        return found


OURS = own_format("stages.0.blocks.0.attention.pool_q.conv.layers.0.weight")
TIMM = Format(name="timm", marks=("stages.0.blocks.0.attn.pool_q.weight",), rules=_rules(BLOCK, "head.fc"))
AUTHORS = OneRow(
    name="facebookresearch", marks=("blocks.0.attn.pool_q.weight",), rules=_rules(ROW, "head.projection")
)
# The names of the authors end those of timm.
FORMATS = (OURS, TIMM, AUTHORS)
