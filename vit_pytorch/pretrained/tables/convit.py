"""Checkpoints of ConViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vit_pytorch.pretrained.rules import NumberedFormat, Reference, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "blocks.{i}"
# What the rules call theirs of the first layers, whose attention has other names.
LOCAL = "local.{i}"
GATED = f"{BLOCK}.attention.attention"
# One projection for queries and keys, one for values.
QK_V = Transform(
    lambda parts, module: torch.cat(list(parts)),
    lambda tensor, module: tensor.tensor_split((len(tensor) // 3 * 2,)),
)


@dataclass(frozen=True, kw_only=True)
class LocalFirst(NumberedFormat):
    """A layout in which the first layers differ."""

    def places(self, model: Any) -> dict[str, str]:
        """Return what the rules call the first layers; see `NumberedFormat.places`."""
        return {f"blocks.{i}.": f"{LOCAL.format(i=i)}." for i in range(model.local_layers)}


OURS = own_format("blocks.0.attention.attention.kernel.gate")
# timm has the authors' names.
TIMM = LocalFirst(
    name="timm",
    marks=("blocks.0.attn.gating_param",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        *timm_block(BLOCK, "blocks.{i}"),
        *timm_block(BLOCK, LOCAL, qkv=False, attention="attention.attention"),
        Rule(f"{GATED}.to_qkv.{{p}}", (f"{LOCAL}.attn.qk.{{p}}", f"{LOCAL}.attn.v.{{p}}"), QK_V),
        Rule(f"{GATED}.kernel.gate", f"{LOCAL}.attn.gating_param"),
        Rule(f"{BLOCK}.attention.weights.linear.{{p}}", f"{LOCAL}.attn.pos_proj.{{p}}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES = {"depth": 3, "num_classes": 7, "qkv_bias": True}
REFERENCES = (
    Reference(
        format="timm",
        name="timm.models.convit.ConVit",
        theirs={
            **SIZES,
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 8,
            "num_heads": 5,
            "local_up_to_layer": 2,
        },
        ours={
            **SIZES,
            "image_size": 32,
            "patch_size": 8,
            "dim": 40,
            "heads": 5,
            "mlp_dim": 160,
            "local_layers": 2,
        },
    ),
)
