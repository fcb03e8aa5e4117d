"""Checkpoints of Segment Anything's image encoder."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "blocks.{i}"
ATTENTION = f"{BLOCK}.attention.attention"
# Their table lies as a map.
TABLE = Transform(
    lambda parts, module: parts[0].flatten(1, 2),
    lambda tensor, positions: (tensor.unflatten(1, positions.grid),),
)


def _attention(theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ATTENTION}.to_qkv.{{p}}", f"{theirs}.attn.qkv.{{p}}"),
        Rule(f"{ATTENTION}.to_out.{{p}}", f"{theirs}.attn.proj.{{p}}"),
        Rule(f"{ATTENTION}.position.rows", f"{theirs}.attn.rel_pos_h"),
        Rule(f"{ATTENTION}.position.columns", f"{theirs}.attn.rel_pos_w"),
    )


OURS = own_format("blocks.0.attention.attention.position.rows")
TIMM = Format(
    name="timm",
    marks=("blocks.0.mlp.fc1.weight",),
    rules=(
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        Rule("positions.table", "pos_embed", TABLE),
        *_attention("blocks.{i}"),
        *timm_block(BLOCK, "blocks.{i}", attention="attention.attention"),
        Rule("neck.project.weight", "neck.0.weight", POINTWISE),
        Rule("neck.norm1.{p}", "neck.1.{p}"),
        Rule("neck.conv.weight", "neck.2.weight"),
        Rule("neck.norm2.{p}", "neck.3.{p}"),
        # a neck that is a norm alone
        Rule("neck.{p}", "neck.{p}"),
        Rule("head.{p}", "head.fc.{p}"),
    ),
)
# The decoder of masks and what it takes.
DECODER = ("/prompt_encoder.{name}", "/mask_decoder.{name}", "/shared_image_embedding.{name}")
AUTHORS = replace(
    TIMM,
    name="segment_anything",
    marks=("blocks.0.mlp.lin1.weight",),
    prefix="image_encoder.",
    unused=DECODER,
    rules=(
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", "blocks.{i}.mlp.lin1.{p}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", "blocks.{i}.mlp.lin2.{p}"),
        *TIMM.rules,
    ),
)
LAYER = "layers.{i}"
TRANSFORMERS = Format(
    name="transformers",
    marks=("layers.0.mlp.lin1.weight",),
    prefix="vision_encoder.",
    unused=DECODER,
    rules=(
        Rule("patch_embed.proj.{p}", "patch_embed.projection.{p}"),
        Rule("positions.table", "pos_embed", TABLE),
        *_attention(LAYER),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{LAYER}.layer_norm1.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{LAYER}.layer_norm2.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{LAYER}.mlp.lin1.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{LAYER}.mlp.lin2.{{p}}"),
        Rule("neck.project.weight", "neck.conv1.weight", POINTWISE),
        Rule("neck.norm1.{p}", "neck.layer_norm1.{p}"),
        Rule("neck.conv.weight", "neck.conv2.weight"),
        Rule("neck.norm2.{p}", "neck.layer_norm2.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS, TIMM, TRANSFORMERS)
