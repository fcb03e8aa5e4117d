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


def concat_qk_v(parts: Sequence[Tensor], attention: Any) -> Tensor:
    """Return one projection from that of queries and keys and that of values."""
    return torch.cat(list(parts))


def split_qk_v(tensor: Tensor, attention: Any) -> Sequence[Tensor]:
    """Return the projection of queries and keys, and that of values; the inverse of `concat_qk_v`."""
    q, k, v = tensor.chunk(3)
    return torch.cat([q, k]), v


def _read(parts: Sequence[Tensor], attention: Any) -> Tensor:
    """Put the channels of a pair, which are half a head apart there, beside each other."""
    qk = parts[0].unflatten(0, (2, attention.heads, 2, -1)).transpose(2, 3).flatten(0, 3)
    return concat_qk_v([qk, parts[1]], attention)


def _write(tensor: Tensor, attention: Any) -> Sequence[Tensor]:
    qk, v = split_qk_v(tensor, attention)
    return qk.unflatten(0, (2, attention.heads, -1, 2)).transpose(2, 3).flatten(0, 3), v


ATTENTION = "transformer.layers.{i}.0"
PUBLIC_ROTARY = replace(
    PUBLIC,
    name="vit-pytorch rotary ViT of n axes",
    unused=("transformer.layers.{i}.0.rotary_emb.freqs", "rotary_emb.freqs"),
    rules=(
        Rule(
            f"{QKV}.weight",
            (f"{ATTENTION}.to_qk.weight", f"{ATTENTION}.to_v.weight"),
            Transform(_read, _write),
        ),
        *PUBLIC.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
