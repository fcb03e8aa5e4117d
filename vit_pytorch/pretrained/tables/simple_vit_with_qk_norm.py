"""Checkpoints of the SimpleViT with normed queries and keys."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, public_simple_vit

# The public package multiplies no score by 1 / sqrt(dim_head).
QUERY_GAIN = Transform(
    lambda parts, module: parts[0] * parts[0].shape[-1] ** 0.5,
    lambda tensor, module: (tensor / tensor.shape[-1] ** 0.5,),
)
PUBLIC = public_simple_vit(
    "SimpleViT with QK norm",
    Rule(f"{BLOCK}.attention.q_norm.weight", "transformer.layers.{i}.0.q_norm.gamma", QUERY_GAIN),
    Rule(f"{BLOCK}.attention.k_norm.weight", "transformer.layers.{i}.0.k_norm.gamma"),
    # A LayerNorm of the pooled vector: there is no classifier.
    unused=("linear_head.{p}",),
)

FORMATS = (OURS, replace(PUBLIC, rules=tuple(rule for rule in PUBLIC.rules if rule.ours != "head.{p}")))
