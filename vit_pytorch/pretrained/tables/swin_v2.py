"""Checkpoints of Swin V2."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.swin import (
    AUTHORS_UNUSED,
    BLOCK,
    BRANCH,
    BUFFERS,
    THEIR_BLOCK,
    THEIRS,
    TIMM_BLOCK,
    timm_rules,
    transformers_rules,
)

NETWORK = "stages.{i}.blocks.{j}.attention.bias.network"
PARTS = (
    *(Rule(f"{BRANCH}.qv_bias.{part}", f"{THEIRS}.attn.{part[0]}_bias") for part in ("query", "value")),
    Rule(f"{BRANCH}.q_norm.log_factor", f"{THEIRS}.attn.logit_scale"),
    Rule(f"{NETWORK}.{{name}}", f"{THEIRS}.attn.cpb_mlp.{{name}}"),
)
ATTENTION = f"{THEIR_BLOCK}.attention"

OURS = own_format("stages.0.blocks.0.attention.bias.network.0.weight")
AUTHORS = Format(
    name="microsoft",
    marks=("layers.0.downsample.reduction.weight",),
    unused=AUTHORS_UNUSED,
    rules=timm_rules(*TIMM_BLOCK, *PARTS, shift=1),
)
TIMM = Format(
    name="timm",
    marks=("layers.0.blocks.0.attn.logit_scale",),
    unused=AUTHORS_UNUSED,
    rules=timm_rules(*TIMM_BLOCK, *PARTS, shift=0),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.layers.0.blocks.0.attention.self.logit_scale",),
    prefix="swinv2.",
    unused=tuple(f"{ATTENTION}.self.{name}" for name in BUFFERS),
    rules=transformers_rules(
        Rule(
            f"{BRANCH}.to_qkv.weight",
            tuple(f"{ATTENTION}.self.{name}.weight" for name in ("query", "key", "value")),
            stack(3),
        ),
        *(Rule(f"{BRANCH}.qv_bias.{name}", f"{ATTENTION}.self.{name}.bias") for name in ("query", "value")),
        Rule(f"{BRANCH}.q_norm.log_factor", f"{ATTENTION}.self.logit_scale"),
        Rule(f"{NETWORK}.{{name}}", f"{ATTENTION}.self.continuous_position_bias_mlp.{{name}}"),
        Rule(f"{BRANCH}.to_out.{{p}}", f"{ATTENTION}.output.dense.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIR_BLOCK}.intermediate.dense.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIR_BLOCK}.output.dense.{{p}}"),
    ),
)
FORMATS = (OURS, TRANSFORMERS, AUTHORS, TIMM)
