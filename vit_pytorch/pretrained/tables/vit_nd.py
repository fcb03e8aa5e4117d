"""Checkpoints of ViTs on arrays of any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Rule, Transform
from vit_pytorch.pretrained.tables.vit import OURS, PUBLIC_VIT, QKV

_PATCHES = (
    Rule("patch_embed.proj.{p}", "to_patch_embedding.1.{p}"),
    Rule("patch_embed.norm.{p}", "to_patch_embedding.2.{p}"),
)
PUBLIC = replace(PUBLIC_VIT, name="vit-pytorch ViT of n axes", rules=(*_PATCHES, *PUBLIC_VIT.rules))


def _read(parts: Sequence[Tensor], attention: Any) -> Tensor:
    """Put the channels of a pair, which are half a head apart there, beside each other."""
    qk = parts[0].unflatten(0, (2, attention.heads, 2, -1)).transpose(2, 3).flatten(0, 3)
    return torch.cat([qk, parts[1]])


def _write(tensor: Tensor, attention: Any) -> Sequence[Tensor]:
    q, k, v = tensor.chunk(3)
    qk = torch.cat([q, k]).unflatten(0, (2, attention.heads, -1, 2)).transpose(2, 3).flatten(0, 3)
    return qk, v


_ATTENTION = "transformer.layers.{i}.0"
PUBLIC_ROTARY = replace(
    PUBLIC,
    name="vit-pytorch rotary ViT of n axes",
    unused=("transformer.layers.{i}.0.rotary_emb.freqs", "rotary_emb.freqs"),
    rules=(
        Rule(
            f"{QKV}.weight",
            (f"{_ATTENTION}.to_qk.weight", f"{_ATTENTION}.to_v.weight"),
            Transform(_read, _write),
        ),
        *PUBLIC.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
