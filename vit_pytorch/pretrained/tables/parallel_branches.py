"""timm's names of blocks whose branches act side by side (arXiv:2302.05442), with joint projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Format, Rule, Transform

OURS, THEIRS = "blocks.{i}", "blocks.{i}"
HIDDEN, QKV = f"{OURS}.feedforward.to_hidden", f"{OURS}.attention.to_qkv"
OUT, CONTRACT = f"{OURS}.attention.to_out", f"{OURS}.feedforward.to_out"


def _split_hidden(parts: Sequence[Tensor], feedforward: Any) -> Sequence[Tensor]:
    hidden: int = feedforward.to_hidden.out_features
    return parts[0][:hidden], parts[0][hidden:]


def _split_inputs(parts: Sequence[Tensor], attention: Any) -> Sequence[Tensor]:
    inner: int = attention.to_out.in_features
    return parts[0][:, :inner], parts[0][:, inner:]


# The first layer of the feed-forward, then queries, keys and values.
FIRST = Transform(_split_hidden, lambda tensors, module: (torch.cat(tensors),))
# The projection of the heads, then the second layer of the feed-forward.
SECOND = Transform(_split_inputs, lambda tensors, module: (torch.cat(tensors, dim=1),))


def formats_beside(timm: Format) -> tuple[Format, ...]:
    """Return the formats whose other names are those of timm's plain ViT."""
    apart = replace(
        timm,
        name="timm, parallel branches",
        marks=("blocks.0.in_proj.weight",),
        rules=(
            Rule(f"{OURS}.norm.{{p}}", f"{THEIRS}.in_norm.{{p}}"),
            Rule((f"{HIDDEN}.{{p}}", f"{QKV}.{{p}}"), f"{THEIRS}.in_proj.{{p}}", FIRST),
            Rule(f"{OUT}.{{p}}", f"{THEIRS}.attn_out_proj.{{p}}"),
            Rule(f"{CONTRACT}.{{p}}", f"{THEIRS}.mlp_out_proj.{{p}}"),
            Rule(f"{OURS}.attention.q_norm.{{p}}", f"{THEIRS}.q_norm.{{p}}"),
            Rule(f"{OURS}.attention.k_norm.{{p}}", f"{THEIRS}.k_norm.{{p}}"),
            Rule(f"{OURS}.scale.gamma", f"{THEIRS}.ls.gamma"),
            *timm.rules,
        ),
    )
    without_bias = replace(
        apart,
        name="timm, parallel branches without biases of queries",
        marks=("blocks.0.mlp_bias",),
        rules=(Rule(f"{HIDDEN}.bias", f"{THEIRS}.mlp_bias"), *apart.rules),
    )
    differential = replace(
        apart,
        name="timm, parallel branches of differential attention",
        marks=("blocks.0.out_proj.weight",),
        rules=(
            Rule((f"{OUT}.weight", f"{CONTRACT}.weight"), f"{THEIRS}.out_proj.weight", SECOND),
            Rule(f"{CONTRACT}.bias", f"{THEIRS}.out_proj.bias"),
            Rule(f"{OURS}.attention.kernel.sub_norm.weight", f"{THEIRS}.sub_norm.weight"),
            Rule(f"{OURS}.attention.kernel.lambda_{{name}}", f"{THEIRS}.lambda_{{name}}"),
            *apart.rules,
        ),
    )
    return differential, without_bias, apart
