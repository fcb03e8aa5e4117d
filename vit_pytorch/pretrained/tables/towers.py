"""Checkpoints of vision towers, as transformers names CLIP's and SigLIP's; texts beside them are left out."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack

BLOCK = "blocks.{i}"
THEIRS = "encoder.layers.{i}"
POOL = "attention_pool"

# Positions without the axis of the batch, and a class token that is a vector.
TABLE = Transform(lambda parts, module: parts[0].unsqueeze(0), lambda tensor, module: (tensor.squeeze(0),))
VECTOR = Transform(lambda parts, module: parts[0].view(1, 1, -1), lambda tensor, module: (tensor.flatten(),))
# One projection of theirs as ours of the query and ours of keys and values.
APART = Transform(
    lambda parts, pool: (parts[0][: len(parts[0]) // 3], parts[0][len(parts[0]) // 3 :]),
    lambda tensors, pool: (torch.cat(tensors),),
)

_COMMON = (
    Rule("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    Rule("positions.table", "embeddings.position_embedding.weight", TABLE),
    Rule(f"{BLOCK}.norm1.{{p}}", f"{THEIRS}.layer_norm1.{{p}}"),
    Rule(
        f"{BLOCK}.attention.to_qkv.{{p}}",
        tuple(f"{THEIRS}.self_attn.{x}_proj.{{p}}" for x in "qkv"),
        stack(3),
    ),
    Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{THEIRS}.self_attn.out_proj.{{p}}"),
    Rule(f"{BLOCK}.norm2.{{p}}", f"{THEIRS}.layer_norm2.{{p}}"),
    Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIRS}.mlp.fc1.{{p}}"),
    Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIRS}.mlp.fc2.{{p}}"),
    Rule("norm.{p}", "post_layernorm.{p}"),
)
_TEXTS = (
    "embeddings.position_ids",
    "/text_model.{name}",
    "/visual_projection.{p}",
    "/text_projection.{p}",
    "/logit_scale",
    "/logit_bias",
)
CLIP = Format(
    name="transformers CLIP",
    marks=("pre_layrnorm.weight",),
    prefix="vision_model.",
    unused=_TEXTS,
    rules=(
        *_COMMON,
        Rule("prefix.class_token", "embeddings.class_embedding", VECTOR),
        Rule("pre_norm.{p}", "pre_layrnorm.{p}"),
    ),
)
SIGLIP = Format(
    name="transformers SigLIP",
    marks=("head.probe",),
    prefix="vision_model.",
    unused=_TEXTS,
    rules=(
        *_COMMON,
        Rule(f"{POOL}.query", "head.probe"),
        Rule((f"{POOL}.to_q.weight", f"{POOL}.to_kv.weight"), "head.attention.in_proj_weight", APART),
        Rule((f"{POOL}.to_q.bias", f"{POOL}.to_kv.bias"), "head.attention.in_proj_bias", APART),
        Rule(f"{POOL}.to_out.{{p}}", "head.attention.out_proj.{p}"),
        Rule(f"{POOL}.norm.{{p}}", "head.layernorm.{p}"),
        Rule(f"{POOL}.mlp.to_hidden.{{p}}", "head.mlp.fc1.{p}"),
        Rule(f"{POOL}.mlp.to_out.{{p}}", "head.mlp.fc2.{p}"),
    ),
)
FORMATS = (CLIP, SIGLIP)
