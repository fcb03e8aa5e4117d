"""Checkpoints of GC ViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit_pytorch.pretrained.rules import NumberedFormat, Reference, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

STAGE = "stages.{i}"
BLOCK = f"{STAGE}.blocks.{{j}}"
# What the rules call theirs of attention from global queries, which has other names here, and the last norm.
GLOBAL, NORM = "global.{i}.{j}", "last_norm"
TABLE = "rel_pos.relative_position_bias_table"
# At most so many halvings lead to the map of the global queries.
HALVINGS = range(8)


def _fused_mbconv(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of a Fused-MBConv."""
    return (
        Rule(f"{ours}.depthwise.layers.0.weight", f"{theirs}.conv_dw.weight"),
        Rule(f"{ours}.depthwise.layers.2.squeeze.weight", f"{theirs}.se.fc1.weight", POINTWISE),
        Rule(f"{ours}.depthwise.layers.2.excite.weight", f"{theirs}.se.fc2.weight", POINTWISE),
        Rule(f"{ours}.project.weight", f"{theirs}.conv_pw.weight", POINTWISE),
    )


def _downsample(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Return the rules of what halves a map."""
    return (
        Rule(f"{ours}.0.{{p}}", f"{theirs}.norm1.{{p}}"),
        *_fused_mbconv(f"{ours}.1", f"{theirs}.conv_block"),
        Rule(f"{ours}.2.layers.0.weight", f"{theirs}.reduction.weight"),
        Rule(f"{ours}.3.{{p}}", f"{theirs}.norm2.{{p}}"),
    )


@dataclass(frozen=True, kw_only=True)
class TimmGCViT(NumberedFormat):
    """timm's layout: the attention of every second block differs, and the last stage has the norm."""

    def places(self, model: Any) -> dict[str, str]:
        """Return what the rules call this attention and the norm; see `NumberedFormat.places`."""
        blocks = {
            f"stages.{i}.blocks.{j}.attn.": f"{GLOBAL.format(i=i, j=j)}."
            for i, stage in enumerate(model.stages)
            for j in range(1, len(stage.blocks), 2)
        }
        return {**blocks, f"stages.{len(model.stages) - 1}.norm.": f"{NORM}."}


OURS = own_format("stages.0.query.0.project.weight")
TIMM = TimmGCViT(
    name="timm",
    marks=("stem.down.conv_block.conv_dw.weight",),
    rules=(
        Rule("stem.0.layers.0.{p}", "stem.conv1.{p}"),
        *_downsample("stem.1", "stem.down"),
        *_downsample(f"{STAGE}.down", f"{STAGE}.downsample"),
        *(
            rule
            for n in HALVINGS
            for rule in _fused_mbconv(f"{STAGE}.query.{2 * n}", f"{STAGE}.global_block.blocks.conv{n + 1}")
        ),
        *timm_block(BLOCK, BLOCK, attention="attention.attention"),
        Rule(f"{BLOCK}.attention.to_kv.{{p}}", f"{GLOBAL}.qkv.{{p}}"),
        Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{GLOBAL}.proj.{{p}}"),
        Rule(f"{BLOCK}.attention.bias.table", f"{BLOCK}.attn.{TABLE}"),
        Rule(f"{BLOCK}.attention.bias.table", f"{GLOBAL}.{TABLE}"),
        *(Rule(f"{BLOCK}.scale{n}.gamma", f"{BLOCK}.ls{n}.gamma") for n in (1, 2)),
        Rule("norm.{p}", f"{NORM}.{{p}}"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES: dict[str, Any] = {"num_classes": 7, "mlp_ratio": 2, "layer_scale": 0.5}
REFERENCES = (
    Reference(
        format="timm",
        name="timm.models.gcvit.GlobalContextVit",
        theirs={
            **SIZES,
            "img_size": (64, 96),
            "embed_dim": 32,
            "depths": (3, 2, 2),
            "num_heads": (2, 4, 4),
            "window_ratio": (16, 8, 16),
        },
        ours={
            **SIZES,
            "image_size": (64, 96),
            "dim": 32,
            "depth": (3, 2, 2),
            "heads": (2, 4, 4),
            "num_windows": (4, 1, 1),
        },
    ),
)
