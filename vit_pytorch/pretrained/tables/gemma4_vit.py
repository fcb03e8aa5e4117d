"""Checkpoints of Gemma 4's vision tower: timm's and transformers'.

The standardisation of what is pooled for the language model is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_pytorch.gemma4_vit import NO_LIMIT, Clip
from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import CHANNELS_FIRST

BLOCK = "blocks.{i}"
# Embeddings of columns, then of rows.
TABLES = Transform(
    lambda parts, module: parts[0].unsqueeze(1).unbind(0), lambda tensors, module: (torch.cat(tensors),)
)
# Without limits theirs are infinite.
LIMIT = Transform(lambda parts, module: parts[0].clamp(-NO_LIMIT, NO_LIMIT), lambda limit, module: (limit,))
LINEARS = (
    *((f"attention.to_{x}", f"attn.{x}_proj") for x in "qkv"),
    ("attention.to_out", "attn.o_proj"),
    ("feedforward.to_gate", "mlp.gate_proj"),
    ("feedforward.to_hidden", "mlp.up_proj"),
    ("feedforward.to_out", "mlp.down_proj"),
)
NORMS = ("norm1", "post_norm1", "norm2", "post_norm2")
OURS = own_format("blocks.0.attention.to_q.linear.weight")


def _rules(embed: str, block: str, norms: tuple[str, ...], attention: str) -> tuple[Rule, ...]:
    """Return the rules of a layout.

    Args:
        embed: its name of the patch embedding.
        block: its name of a block.
        norms: its names of a block's norms, in the order of `NORMS`.
        attention: its name of the attention.
    """
    linears = [(ours, theirs.replace("attn", attention)) for ours, theirs in LINEARS]
    limits = [
        (f"{part}.{end}", f"{side}_{limit}")
        for part, side in (("before", "input"), ("after", "output"))
        for end, limit in (("low", "min"), ("high", "max"))
    ]
    return (
        Rule("patch_embed.proj.weight", f"{embed}.input_proj.weight", CHANNELS_FIRST),
        Rule(("positions.columns", "positions.rows"), f"{embed}.position_embedding_table", TABLES),
        *(
            Rule(f"{BLOCK}.{ours}.weight", f"{block}.{theirs}.weight")
            for ours, theirs in zip(NORMS, norms, strict=True)
        ),
        *(Rule(f"{BLOCK}.attention.{x}_norm.weight", f"{block}.{attention}.{x}_norm.weight") for x in "qk"),
        *(
            Rule(f"{BLOCK}.{ours}.linear.weight", f"{block}.{theirs}.linear.weight")
            for ours, theirs in linears
        ),
        *(
            Rule(f"{BLOCK}.{ours}.{limit}", f"{block}.{theirs}.{name}", LIMIT)
            for ours, theirs in linears
            for limit, name in limits
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Timm(Format):
    """timm's layout, in which towers without limits have a standardisation that classifiers do not use."""

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format, with a standardisation that does nothing; see `Format`."""
        written = super().write(state, model)
        if not any(isinstance(part, Clip) for part in model.modules()):
            like = state["blocks.0.norm1.weight"]
            written[f"{self.prefix}std_bias"] = torch.zeros_like(like)
            written[f"{self.prefix}std_scale"] = torch.ones_like(like)
        return written


TIMM = Timm(
    name="timm",
    marks=("blocks.0.attn.q_proj.linear.weight",),
    prefix="encoder.",
    unused=("std_bias", "std_scale"),
    rules=(
        *_rules("patch_embed", BLOCK, ("norm1", "norm2", "norm3", "norm4"), "attn"),
        Rule("head.{p}", "/head.{p}"),
    ),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.layers.0.self_attn.q_proj.linear.weight",),
    prefix="model.vision_tower.",
    unused=("std_bias", "std_scale", "/{name}"),
    rules=_rules(
        "patch_embedder",
        "encoder.layers.{i}",
        (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        "self_attn",
    ),
)
FORMATS = (OURS, TIMM, TRANSFORMERS)
