"""Checkpoints of CrossViT: timm's and the authors', which differ in the names of tokens and positions."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.blocks import timm_block

FUSION = "multi_scale_encoder.{i}.fusions.{j}"
TURN = f"{FUSION}.turns.0"

OURS = own_format("multi_scale_encoder.0.fusions.0.project.0.weight")


_COMMON = (
    Rule("branches.{i}.patch_embed.proj.{p}", "patch_embed.{i}.proj.{p}"),
    Rule("branches.{i}.patch_embed.proj.{j}.{p}", "patch_embed.{i}.proj.{j}.{p}"),
    *timm_block("multi_scale_encoder.{i}.small.{j}", "blocks.{i}.blocks.0.{j}"),
    *timm_block("multi_scale_encoder.{i}.large.{j}", "blocks.{i}.blocks.1.{j}"),
    Rule(f"{FUSION}.project.0.{{p}}", "blocks.{i}.projs.{j}.0.{p}"),
    Rule(f"{FUSION}.project.2.{{p}}", "blocks.{i}.projs.{j}.2.{p}"),
    Rule(f"{TURN}.norm.{{p}}", "blocks.{i}.fusion.{j}.norm1.{p}"),
    Rule(f"{TURN}.attention.to_q.{{p}}", "blocks.{i}.fusion.{j}.attn.wq.{p}"),
    Rule(
        f"{TURN}.attention.to_kv.{{p}}",
        ("blocks.{i}.fusion.{j}.attn.wk.{p}", "blocks.{i}.fusion.{j}.attn.wv.{p}"),
        stack(2),
    ),
    Rule(f"{TURN}.attention.to_out.{{p}}", "blocks.{i}.fusion.{j}.attn.proj.{p}"),
    Rule(f"{FUSION}.revert.0.{{p}}", "blocks.{i}.revert_projs.{j}.0.{p}"),
    Rule(f"{FUSION}.revert.2.{{p}}", "blocks.{i}.revert_projs.{j}.2.{p}"),
    Rule("branches.{i}.norm.{p}", "norm.{i}.{p}"),
    Rule("head.small.{p}", "head.0.{p}"),
    Rule("head.large.{p}", "head.1.{p}"),
)
TIMM = Format(
    name="timm",
    marks=("pos_embed_0",),
    rules=(
        Rule("branches.{i}.prefix.class_token", "cls_token_{i}"),
        Rule("branches.{i}.positions.table", "pos_embed_{i}"),
        *_COMMON,
    ),
)
OFFICIAL = Format(
    name="IBM CrossViT",
    marks=("pos_embed.0",),
    rules=(
        Rule("branches.{i}.prefix.class_token", "cls_token.{i}"),
        Rule("branches.{i}.positions.table", "pos_embed.{i}"),
        *_COMMON,
    ),
)

FORMATS = (OURS, TIMM, OFFICIAL)
