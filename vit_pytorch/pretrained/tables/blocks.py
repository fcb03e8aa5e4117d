"""What several formats share: the names of a transformer block, and a transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Rule, Transform

# A 1 x 1 convolution of theirs as the linear layer that it equals.
POINTWISE = Transform(
    lambda parts, module: parts[0].flatten(1), lambda tensor, module: (tensor[:, :, None, None],)
)


def _without_bias(parts: Sequence[Tensor], module: Any) -> Sequence[Tensor]:
    weight, bias = parts
    if bias.any():
        raise ValueError("the format has norms without biases, and the model's are not zero")
    return (weight,)


# Norms of theirs have no biases.
UNBIASED = Transform(lambda parts, module: (parts[0], torch.zeros_like(parts[0])), _without_bias)
# A projection of patches flattened in the order (channel, row, column), and a table without the batch's axis.
CHANNELS_FIRST = Transform(
    lambda parts, embed: parts[0].unflatten(1, (-1, *embed.grid.patch)),
    lambda kernel, embed: (kernel.flatten(1),),
)
TABLE = Transform(lambda parts, module: parts[0].unsqueeze(0), lambda table, module: (table.squeeze(0),))


def timm_block(ours: str, theirs: str, *, qkv: bool = True, attention: str = "attention") -> tuple[Rule, ...]:
    """Return a block's norms and linear layers, as timm and most authors after it name them.

    Args:
        ours: our name of the block.
        theirs: their name of it.
        qkv: whether one projection gives queries, keys and values.
        attention: where our block has the projections.
    """
    inner = f"{ours}.{attention}"
    return (
        Rule(f"{ours}.norm1.{{p}}", f"{theirs}.norm1.{{p}}"),
        *((Rule(f"{inner}.to_qkv.{{p}}", f"{theirs}.attn.qkv.{{p}}"),) if qkv else ()),
        Rule(f"{inner}.to_out.{{p}}", f"{theirs}.attn.proj.{{p}}"),
        Rule(f"{ours}.norm2.{{p}}", f"{theirs}.norm2.{{p}}"),
        Rule(f"{ours}.feedforward.to_hidden.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{ours}.feedforward.to_out.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
    )


def positioned_stages() -> tuple[Rule, ...]:
    """Return what Twins and, after it, SepViT name alike: all but the attention."""
    ours, theirs = "stages.{i}.blocks.{j}", "blocks.{i}.{j}"
    return (
        Rule("stages.{i}.down.0.layers.0.{p}", "patch_embeds.{i}.proj.{p}"),
        Rule("stages.{i}.down.1.{p}", "patch_embeds.{i}.norm.{p}"),
        Rule("stages.{i}.blocks.0.positions.conv.{p}", "pos_block.{i}.proj.0.{p}"),
        Rule(f"{ours}.norm1.{{p}}", f"{theirs}.norm1.{{p}}"),
        Rule(f"{ours}.norm2.{{p}}", f"{theirs}.norm2.{{p}}"),
        Rule(f"{ours}.feedforward.to_hidden.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{ours}.feedforward.to_out.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    )
