"""Checkpoints of CrossViT: timm's and the authors', which differ in the names of tokens and positions."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack

ENCODER = "multi_scale_encoder.blocks.{i}.encoders.{j}.blocks.{k}"
THEIR_ENCODER = "blocks.{i}.blocks.{j}.{k}"
FUSION = "multi_scale_encoder.blocks.{i}.fusions.{j}"
TURN = f"{FUSION}.turns.0"

# One head for each branch is the part of ours that stands under the branch's class token.
HEAD_WEIGHTS = Transform(
    lambda parts, head: torch.cat(list(parts), dim=1), lambda tensor, head: tensor.split(head.dims, dim=1)
)
HEAD_BIASES = Transform(lambda parts, head: torch.stack(list(parts)), lambda tensor, head: tensor.unbind())

OURS = Format(
    name="vit_pytorch",
    marks=("multi_scale_encoder.blocks.0.fusions.0.project.0.weight",),
    rules=(Rule("{name}", "{name}"),),
)

_COMMON = (
    Rule("branches.{i}.patch_embed.proj.{p}", "patch_embed.{i}.proj.{p}"),
    Rule("branches.{i}.patch_embed.proj.{j}.{p}", "patch_embed.{i}.proj.{j}.{p}"),
    Rule(f"{ENCODER}.attention.norm.{{p}}", f"{THEIR_ENCODER}.norm1.{{p}}"),
    Rule(f"{ENCODER}.attention.branch.to_qkv.{{p}}", f"{THEIR_ENCODER}.attn.qkv.{{p}}"),
    Rule(f"{ENCODER}.attention.branch.to_out.{{p}}", f"{THEIR_ENCODER}.attn.proj.{{p}}"),
    Rule(f"{ENCODER}.feedforward.norm.{{p}}", f"{THEIR_ENCODER}.norm2.{{p}}"),
    Rule(f"{ENCODER}.feedforward.branch.to_hidden.{{p}}", f"{THEIR_ENCODER}.mlp.fc1.{{p}}"),
    Rule(f"{ENCODER}.feedforward.branch.to_out.{{p}}", f"{THEIR_ENCODER}.mlp.fc2.{{p}}"),
    Rule(f"{FUSION}.project.{{k}}.{{p}}", "blocks.{i}.projs.{j}.{k}.{p}"),
    Rule(f"{TURN}.norm.{{p}}", "blocks.{i}.fusion.{j}.norm1.{p}"),
    Rule(f"{TURN}.branch.to_q.{{p}}", "blocks.{i}.fusion.{j}.attn.wq.{p}"),
    Rule(
        f"{TURN}.branch.to_kv.{{p}}",
        ("blocks.{i}.fusion.{j}.attn.wk.{p}", "blocks.{i}.fusion.{j}.attn.wv.{p}"),
        stack(2),
    ),
    Rule(f"{TURN}.branch.to_out.{{p}}", "blocks.{i}.fusion.{j}.attn.proj.{p}"),
    Rule(f"{FUSION}.revert.{{k}}.{{p}}", "blocks.{i}.revert_projs.{j}.{k}.{p}"),
    Rule("branches.{i}.norm.{p}", "norm.{i}.{p}"),
    Rule("head.weight", ("head.0.weight", "head.1.weight"), HEAD_WEIGHTS),
    Rule("head.bias", ("head.0.bias", "head.1.bias"), HEAD_BIASES),
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
