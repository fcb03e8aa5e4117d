"""Checkpoints of the Rotary Vision Transformer."""

from __future__ import annotations

from dataclasses import replace

import torch

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, PATCHES, PUBLIC_VIT, QKV

ATTENTION, LAYER = f"{BLOCK}.attention", "transformer.layers.{i}.0"
CONCAT = Transform(
    lambda parts, module: torch.cat(list(parts)),
    lambda tensor, module: tensor.tensor_split([len(tensor) // 3]),
)
PUBLIC = replace(
    PUBLIC_VIT,
    name="vit-pytorch RvT",
    unused=("transformer.pos_emb.scales",),
    rules=(
        Rule("patch_embed.proj.weight", "to_patch_embedding.1.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
        Rule("fc_norm.{p}", "mlp_head.0.{p}"),
        Rule("head.{p}", "mlp_head.1.{p}"),
        Rule(f"{ATTENTION}.conv.weight", f"{LAYER}.to_q.conv.net.0.weight"),
        Rule(f"{ATTENTION}.to_q.weight", f"{LAYER}.to_q.conv.net.1.weight", POINTWISE),
        Rule(f"{ATTENTION}.class_to_q.{{p}}", f"{LAYER}.to_q.cls_proj.{{p}}"),
        # Without convolutions, queries, keys and values are one layer.
        Rule(f"{QKV}.weight", (f"{LAYER}.to_q.weight", f"{LAYER}.to_kv.weight"), CONCAT),
        *PUBLIC_VIT.rules,
    ),
)
PUBLIC_CONV = replace(
    PUBLIC,
    name="vit-pytorch RvT with convolutions",
    marks=("transformer.layers.0.0.to_q.conv.net.0.weight",),
    rules=(Rule(f"{ATTENTION}.to_kv.weight", f"{LAYER}.to_kv.weight"), *PUBLIC.rules),
)

FORMATS = (replace(OURS, marks=("blocks.0.attention.to_out.weight",)), PUBLIC_CONV, PUBLIC)
