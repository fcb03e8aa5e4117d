"""Checkpoints of ViT-5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, QKV, TIMM


def _swap(x: Tensor) -> Tensor:
    """Exchange the halves of each head: the authors rotate by rows first, and we by columns."""
    return x.roll(x.shape[-1] // 2, -1)


def _swap_projections(weight: Tensor, attention: Any) -> Tensor:
    q, k, v = weight.mT.unflatten(-1, (3, attention.heads, -1)).unbind(-3)
    return torch.stack([_swap(q), _swap(k), v], dim=-3).flatten(-3).mT


def _read(parts: Sequence[Tensor], attention: Any) -> Tensor:
    return _swap_projections(parts[0], attention)


# They are their own inverses.
GAINS = Transform(lambda parts, module: _swap(parts[0]), lambda tensor, module: (_swap(tensor),))
PROJECTIONS = Transform(_read, lambda tensor, attention: (_swap_projections(tensor, attention),))

AUTHORS = replace(
    TIMM,
    name="ViT-5",
    fixed_positions=False,
    rules=(
        Rule(f"{QKV}.weight", "blocks.{i}.attn.qkv.weight", PROJECTIONS),
        Rule(f"{BLOCK}.attention.q_norm.weight", "blocks.{i}.attn.q_norm.weight", GAINS),
        Rule(f"{BLOCK}.attention.k_norm.weight", "blocks.{i}.attn.k_norm.weight", GAINS),
        Rule(f"{BLOCK}.scale1.gamma", "blocks.{i}.gamma_1"),
        Rule(f"{BLOCK}.scale2.gamma", "blocks.{i}.gamma_2"),
        *TIMM.rules,
    ),
    # The frequencies of the rotations.
    unused=(*TIMM.unused, "blocks.{i}.attn.rope.freqs", "blocks.{i}.attn.rope_reg.freqs"),
)

FORMATS = (OURS, AUTHORS)
