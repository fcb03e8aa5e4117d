"""Checkpoints of ViTs on videos and volumes, of ViViT and of VideoMAE."""

from __future__ import annotations

from dataclasses import replace

import torch

from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack
from vit_pytorch.pretrained.tables.vit import (
    OURS,
    PUBLIC_SIMPLE_VIT,
    PUBLIC_VIT,
    QKV,
    TIMM,
    TRANSFORMERS,
)

# Biases of keys add the same to all scores of a query, and cancel: VideoMAE has none, they are zero here.
QUERY_VALUE = Transform(
    lambda parts, module: torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]),
    lambda tensor, module: tensor.chunk(3)[::2],
)
TOKEN = Transform(
    lambda parts, module: parts[0].reshape(1, 1, -1), lambda tensor, module: (tensor.flatten(),)
)

TRANSFORMERS_VIVIT = replace(
    TRANSFORMERS,
    marks=("encoder.layer.0.attention.attention.key.bias", "layers.0.layernorm_before.weight"),
    prefix="vivit.",
)
_ATTENTION = "encoder.layer.{i}.attention.attention"
TRANSFORMERS_VIDEOMAE = Format(
    name="transformers VideoMAE",
    marks=("encoder.layer.0.layernorm_before.weight",),
    prefix="videomae.",
    unused=TRANSFORMERS.unused,
    rules=(
        Rule(f"{QKV}.weight", tuple(f"{_ATTENTION}.{x}.weight" for x in ("query", "key", "value")), stack(3)),
        Rule(f"{QKV}.bias", (f"{_ATTENTION}.q_bias", f"{_ATTENTION}.v_bias"), QUERY_VALUE),
        # Files keep the names above; a model in memory has these since release 5.
        Rule(f"{QKV}.bias", (f"{_ATTENTION}.query.bias", f"{_ATTENTION}.value.bias"), QUERY_VALUE),
        Rule("fc_norm.{p}", "/fc_norm.{p}"),
        *TRANSFORMERS.rules,
    ),
)
VIDEOMAE = replace(
    TIMM,
    name="VideoMAE",
    fixed_positions=False,
    rules=(
        Rule(f"{QKV}.weight", "blocks.{i}.attn.qkv.weight"),
        Rule(f"{QKV}.bias", ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"), QUERY_VALUE),
        *TIMM.rules,
    ),
)
_NORM_IN_HEAD = (Rule("norm.{p}", "mlp_head.0.{p}"), Rule("head.{p}", "mlp_head.1.{p}"))
PUBLIC_VIT_3D = replace(PUBLIC_VIT, name="vit-pytorch 3D ViT", rules=(*_NORM_IN_HEAD, *PUBLIC_VIT.rules))
PUBLIC_VIT_1D = replace(
    PUBLIC_VIT_3D,
    name="vit-pytorch 1D ViT",
    rules=(Rule("prefix.class_token", "cls_token", TOKEN), *PUBLIC_VIT_3D.rules),
)

FORMATS = (OURS, TRANSFORMERS_VIVIT, TRANSFORMERS_VIDEOMAE, VIDEOMAE, PUBLIC_VIT_3D, PUBLIC_SIMPLE_VIT)
