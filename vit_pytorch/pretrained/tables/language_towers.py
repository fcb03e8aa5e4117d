"""Checkpoints of the vision towers of language models: Qwen3-VL's and DeepSeek-V4's, timm's and the authors'.

What projects their tokens to the width of the language model, and that model, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vit_pytorch.layers.rotary import HalvedAxialRotary, HalvedRotary
from vit_pytorch.pretrained.rules import Format, Rule, Transform
from vit_pytorch.pretrained.tables.blocks import CHANNELS_FIRST, TABLE, timm_block

BLOCK = "blocks.{i}"
QKV = "blocks.0.attn.qkv.weight"
# timm's names of what projects tokens to the width of the language model.
PROJECTORS = ("merger.fc1.weight", "aligner.fc1.weight")

# A convolution of two equal frames as that of one image.
FRAMES = Transform(
    lambda parts, embed: (
        parts[0].to(torch.promote_types(parts[0].dtype, torch.float64)).sum(dim=2).to(parts[0].dtype)
    ),
    lambda kernel, embed: (torch.stack([kernel / 2, kernel / 2], dim=2),),
)


@dataclass(frozen=True, kw_only=True)
class Encoder(Format):
    """timm's layout of such a tower, and of a classifier with the tower as `encoder`.

    The classifier's differs from others by what is missing: Qwen3-VL has positions and no final norm,
    DeepSeek-V4 a final norm without a bias and no positions.
    """

    def strip_prefix(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the state dict under bare names; None where there are other parts.

        See `Format.strip_prefix`.
        """
        bare = super().strip_prefix(state)
        if bare is None:
            return Format.strip_prefix(replace(self, marks=PROJECTORS), state)
        if {"encoder.norm.bias", "encoder.cls_token"} & bare.keys():
            return None
        return bare if ("encoder.pos_embed" in bare) != ("encoder.norm.weight" in bare) else None

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; a classifier of what a projector gives is not the model's."""
        projected = any(f"encoder.{name}" in state for name in PROJECTORS)
        beside = [name for name in state if projected and name.startswith("head.")]
        found, unused = super().read({key: t for key, t in state.items() if key not in beside}, model)
        return found, [*unused, *beside]


def _rules(root: str) -> tuple[Rule, ...]:
    """Return the rules of timm's names that begin so."""
    return (
        Rule("positions.table", f"{root}pos_embed"),
        Rule("patch_embed.proj.{p}", f"{root}patch_embed.proj.{{p}}"),
        *timm_block(BLOCK, f"{root}blocks.{{i}}"),
        Rule("norm.{p}", f"{root}norm.{{p}}"),
    )


TIMM = Encoder(
    name="timm encoder",
    marks=(f"encoder.{QKV}",),
    unused=tuple(f"{root}{name}.{{name}}" for root in ("encoder.", "") for name in ("merger", "aligner")),
    rotary=(HalvedAxialRotary, HalvedRotary.kind),
    theta=HalvedRotary.theta,
    rules=(*_rules("encoder."), Rule("head.{p}", "head.{p}"), *_rules("")),
)
QWEN3 = Format(
    name="transformers Qwen3-VL",
    marks=("blocks.0.mlp.linear_fc1.weight",),
    prefix="model.visual.",
    rotary=TIMM.rotary,
    theta=TIMM.theta,
    unused=("merger.{name}", "deepstack_merger_list.{name}", "rotary_pos_emb.{name}", "/{name}"),
    rules=(
        Rule("positions.table", "pos_embed.weight", TABLE),
        Rule("patch_embed.proj.weight", "patch_embed.proj.weight", FRAMES),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", "blocks.{i}.mlp.linear_fc1.{p}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", "blocks.{i}.mlp.linear_fc2.{p}"),
        *_rules(""),
    ),
)
DEEPSEEK = Format(
    name="DeepSeek-V4",
    marks=("blocks.0.attn.wqkv.weight",),
    prefix="vision.",
    rotary=TIMM.rotary,
    theta=TIMM.theta,
    unused=("aligner.{name}", "/{name}"),
    rules=(
        Rule("patch_embed.proj.weight", "patch_embed.proj.weight", CHANNELS_FIRST),
        Rule(f"{BLOCK}.attention.to_qkv.{{p}}", "blocks.{i}.attn.wqkv.{p}"),
        Rule(f"{BLOCK}.attention.to_out.{{p}}", "blocks.{i}.attn.wo.{p}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", "blocks.{i}.mlp.w1.{p}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", "blocks.{i}.mlp.w2.{p}"),
        *_rules(""),
    ),
)
FORMATS = (QWEN3, DEEPSEEK, TIMM)
