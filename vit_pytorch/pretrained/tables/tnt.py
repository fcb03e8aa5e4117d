"""Checkpoints of TNT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format

BLOCK = "blocks.{i}"
# The positions of words are a map in timm, channels first.
CHANNELS_FIRST = Transform(
    lambda parts, module: parts[0].flatten(2).transpose(1, 2),
    lambda tensor, words: (
        tensor.transpose(1, 2).unflatten(2, tuple(side // words.conv.stride[0] for side in words.patch)),
    ),
)


def _write_qk_v(tensor: Tensor, module: object) -> Sequence[Tensor]:
    return tensor.split((2 * len(tensor) // 3, len(tensor) // 3))


QK_V = Transform(lambda parts, module: torch.cat(list(parts)), _write_qk_v)


def _half(ours: str, norms: Sequence[str], attention: str, mlp: str) -> tuple[Rule, ...]:
    """Return the rules of the inner or of the outer block.

    Args:
        ours: our name of it.
        norms: their names of its norms, and so on.
    """
    branch = f"{BLOCK}.{ours}.attention"
    return (
        *(Rule(f"{BLOCK}.{ours}.norm{k}.{{p}}", f"{BLOCK}.{norm}.{{p}}") for k, norm in enumerate(norms, 1)),
        Rule(
            f"{branch}.to_qkv.{{p}}", (f"{BLOCK}.{attention}.qk.{{p}}", f"{BLOCK}.{attention}.v.{{p}}"), QK_V
        ),
        Rule(f"{branch}.to_out.{{p}}", f"{BLOCK}.{attention}.proj.{{p}}"),
        Rule(f"{BLOCK}.{ours}.feedforward.to_hidden.{{p}}", f"{BLOCK}.{mlp}.fc1.{{p}}"),
        Rule(f"{BLOCK}.{ours}.feedforward.to_out.{{p}}", f"{BLOCK}.{mlp}.fc2.{{p}}"),
    )


def _sentences(norms: Sequence[str]) -> tuple[Rule, ...]:
    """Return the rules of the projections of words.

    Args:
        norms: their names of the norms.
    """
    pairs = (("sentences", ""), (f"{BLOCK}.add", f"{BLOCK}."))
    return tuple(
        rule
        for ours, theirs in pairs
        for rule in (
            Rule(f"{ours}.norm1.{{p}}", f"{theirs}{norms[0]}.{{p}}"),
            Rule(f"{ours}.proj.{{p}}", f"{theirs}proj.{{p}}"),
            Rule(f"{ours}.norm2.{{p}}", f"{theirs}{norms[1]}.{{p}}"),
        )
    )


AROUND = (
    Rule("prefix.class_token", "cls_token"),
    Rule("norm.{p}", "norm.{p}"),
    Rule("head.{p}", "head.{p}"),
)
OURS = own_format("blocks.0.inner.attention.to_qkv.weight")
TIMM = Format(
    name="timm",
    marks=("blocks.0.attn_in.qk.weight",),
    rules=(
        *AROUND,
        Rule("words.conv.{p}", "pixel_embed.proj.{p}"),
        Rule("words.positions", "pixel_pos", CHANNELS_FIRST),
        Rule("positions.table", "patch_pos"),
        *_sentences(("norm1_proj", "norm2_proj")),
        *_half("inner", ("norm_in", "norm_mlp_in"), "attn_in", "mlp_in"),
        *_half("outer", ("norm_out", "norm_mlp"), "attn_out", "mlp"),
    ),
)
AUTHORS = Format(
    name="tnt",
    marks=("blocks.0.inner_attn.qk.weight",),
    # zeros that the authors' code does not use
    unused=("outer_tokens",),
    rules=(
        *AROUND,
        Rule("words.conv.{p}", "patch_embed.proj.{p}"),
        Rule("words.positions", "inner_pos"),
        Rule("positions.table", "outer_pos"),
        *_sentences(("proj_norm1", "proj_norm2")),
        *_half("inner", ("inner_norm1", "inner_norm2"), "inner_attn", "inner_mlp"),
        *_half("outer", ("outer_norm1", "outer_norm2"), "outer_attn", "outer_mlp"),
    ),
)
FORMATS = (OURS, TIMM, AUTHORS)
