"""Checkpoints of T2T-ViT: ours and the authors' official ones, whose backbone has timm's names."""

from __future__ import annotations

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import SAME, Format, Rule, Transform
from vit_pytorch.pretrained.tables.vit import OURS, TIMM

# A projection of unfolded windows as the convolution that it equals.
WINDOWS = Transform(
    lambda parts, embed: parts[0].unflatten(1, (-1, *embed.proj.kernel_size)),
    lambda tensor, embed: (tensor.flatten(1),),
)


def _swap(tensor: Tensor) -> Tensor:
    first, second, values = tensor.chunk(3)
    return torch.cat([second, first, values])


# The performer's projection gives keys, queries, values.
KQV = Transform(lambda parts, module: _swap(parts[0]), lambda tensor, module: (_swap(tensor),))


def _format(tokens_type: str, mark: str, *block: tuple[str, str, Transform]) -> Format:
    """The layout for one kind of token block, of which there are two."""
    rules = [
        Rule(
            f"patch_embed.blocks.{layer}.{ours}",
            f"tokens_to_token.attention{layer + 1}.{theirs}",
            transform,
        )
        for layer in range(2)
        for ours, theirs, transform in block
    ]
    return Format(
        name=f"T2T-ViT {tokens_type}",
        marks=(f"tokens_to_token.attention1.{mark}",),
        fixed_positions=True,
        rules=(
            *rules,
            Rule("patch_embed.proj.weight", "tokens_to_token.project.weight", WINDOWS),
            Rule("patch_embed.proj.bias", "tokens_to_token.project.bias"),
            *TIMM.rules,
        ),
    )


TRANSFORMER = _format(
    "transformer",
    "attn.qkv.weight",
    ("norm1.{p}", "norm1.{p}", SAME),
    ("to_qkv.weight", "attn.qkv.weight", SAME),
    ("to_out.{p}", "attn.proj.{p}", SAME),
    ("norm2.{p}", "norm2.{p}", SAME),
    ("feedforward.to_hidden.{p}", "mlp.fc1.{p}", SAME),
    ("feedforward.to_out.{p}", "mlp.fc2.{p}", SAME),
)
PERFORMER = _format(
    "performer",
    "kqv.weight",
    ("norm1.{p}", "norm1.{p}", SAME),
    ("to_qkv.{p}", "kqv.{p}", KQV),
    ("kernel.directions", "w", SAME),
    ("to_out.{p}", "proj.{p}", SAME),
    ("norm2.{p}", "norm2.{p}", SAME),
    ("feedforward.to_hidden.{p}", "mlp.0.{p}", SAME),
    ("feedforward.to_out.{p}", "mlp.2.{p}", SAME),
)

FORMATS = (OURS, TRANSFORMER, PERFORMER)
