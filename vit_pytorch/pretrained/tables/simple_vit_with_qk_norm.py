"""Checkpoints of the SimpleViT with normed queries and keys."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, PUBLIC_SIMPLE_VIT

# The public package multiplies no score by 1 / sqrt(dim_head).
QUERY_GAIN = Transform(
    lambda parts, module: parts[0] * parts[0].shape[-1] ** 0.5,
    lambda tensor, module: (tensor / tensor.shape[-1] ** 0.5,),
)

PUBLIC = replace(
    PUBLIC_SIMPLE_VIT,
    name="vit-pytorch SimpleViT with QK norm",
    # A LayerNorm of the pooled vector, and no classifier.
    unused=("linear_head.{p}",),
    rules=(
        Rule(f"{BLOCK}.attention.q_norm.weight", "transformer.layers.{i}.0.q_norm.gamma", QUERY_GAIN),
        Rule(f"{BLOCK}.attention.k_norm.weight", "transformer.layers.{i}.0.k_norm.gamma"),
        *(rule for rule in PUBLIC_SIMPLE_VIT.rules if rule.ours != "head.{p}"),
    ),
)

FORMATS = (OURS, PUBLIC)
