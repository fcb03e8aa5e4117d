"""Checkpoints of ScalableViT."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "stages.{i}.blocks.{j}"
THEIRS = "stages.{i}.{j}"
MIX = f"{BLOCK}.attention"

# Keys and values, which are not equally wide, from what the last layer but one gives.
KEYS_VALUES = Transform(
    lambda parts, layers: torch.cat(list(parts)),
    lambda tensor, layers: tensor.split((layers[4].in_features, len(tensor) - layers[4].in_features)),
)

_COMMON = (
    Rule("stages.{i}.down.0.layers.0.{p}", "patch_embeds.{i}.proj.{p}"),
    Rule("stages.{i}.down.1.{p}", "patch_embeds.{i}.norm.{p}"),
    *timm_block(BLOCK, THEIRS),
    Rule("stages.{i}.blocks.0.positions.conv.{p}", "pos_block.{i}.proj.0.{p}"),
    Rule(f"{MIX}.local.layers.0.{{p}}", f"{THEIRS}.attn.lim_func.{{p}}"),
    Rule(f"{MIX}.to_q.{{p}}", f"{THEIRS}.attn.q.{{p}}"),
    Rule(f"{MIX}.to_kv.0.layers.0.{{p}}", f"{THEIRS}.attn.reduction.0.{{p}}"),
    Rule(f"{MIX}.to_kv.1.weight", f"{THEIRS}.attn.reduction.1.weight", POINTWISE),
    Rule(f"{MIX}.to_kv.1.bias", f"{THEIRS}.attn.reduction.1.bias"),
    Rule(f"{MIX}.to_kv.2.{{p}}", f"{THEIRS}.attn.norm_act.0.{{p}}"),
    Rule(f"{MIX}.to_kv.4.{{p}}", (f"{THEIRS}.attn.k.{{p}}", f"{THEIRS}.attn.v.{{p}}"), KEYS_VALUES),
    Rule(f"{MIX}.to_kv.{{p}}", f"{THEIRS}.attn.kv.{{p}}"),
    Rule("norm.{p}", "norm.{p}"),
)

OURS = own_format("stages.0.blocks.0.attention.local.layers.0.weight")
AUTHORS = Format(
    name="ScalableViT",
    marks=("head.1.weight",),
    rules=(
        *_COMMON,
        Rule("pre_logits.0.{p}", "head.0.{p}"),
        Rule("pre_logits.1.{p}", "head.1.{p}"),
        Rule("head.{p}", "head.3.{p}"),
    ),
)
PLAIN_HEAD = Format(
    name="ScalableViT with a plain head",
    marks=("stages.0.0.attn.lim_func.weight",),
    rules=(*_COMMON, Rule("head.{p}", "head.{p}")),
)
FORMATS = (OURS, AUTHORS, PLAIN_HEAD)
