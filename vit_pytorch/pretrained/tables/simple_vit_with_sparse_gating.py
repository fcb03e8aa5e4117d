"""Checkpoints of the SimpleViT with gated attention."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, QKV, public_simple_vit

SPLIT = Transform(
    lambda parts, attention: parts[0].tensor_split([3 * attention.heads * attention.dim_head]),
    lambda tensors, attention: (torch.cat(list(tensors)),),
)

FORMATS = (
    OURS,
    public_simple_vit(
        "SimpleViT with sparse gating",
        Rule(
            (f"{QKV}.weight", f"{BLOCK}.attention.to_gates.weight"),
            "transformer.layers.{i}.0.to_qkv_and_mask.weight",
            SPLIT,
        ),
    ),
)
