"""Checkpoints of XCiT."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format, stack
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "blocks.{i}"
CLASS = "class_blocks.{i}"

# One projection for queries, keys and values; ours separates the queries, which only the class token has.
QUERY_APART = Transform(
    lambda parts, module: parts[0].tensor_split((len(parts[0]) // 3,)),
    lambda tensors, module: (torch.cat(list(tensors)),),
)

_COMMON = (
    Rule("prefix.class_token", "cls_token"),
    *(Rule(f"patch_embed.convs.{3 * k}.{{p}}", f"patch_embed.proj.{2 * k}.0.{{p}}") for k in range(4)),
    *(
        Rule(f"patch_embed.convs.{3 * k + 1}.{{name}}", f"patch_embed.proj.{2 * k}.1.{{name}}")
        for k in range(4)
    ),
    *timm_block(BLOCK, "blocks.{i}"),
    Rule(f"{BLOCK}.attention.kernel.temperature", "blocks.{i}.attn.temperature"),
    Rule(f"{BLOCK}.scale1.gamma", "blocks.{i}.gamma1"),
    Rule(f"{BLOCK}.norm3.{{p}}", "blocks.{i}.norm3.{p}"),
    Rule(f"{BLOCK}.local.conv_in.{{p}}", "blocks.{i}.local_mp.conv1.{p}"),
    Rule(f"{BLOCK}.local.norm.{{name}}", "blocks.{i}.local_mp.bn.{name}"),
    Rule(f"{BLOCK}.local.conv_out.{{p}}", "blocks.{i}.local_mp.conv2.{p}"),
    Rule(f"{BLOCK}.scale3.gamma", "blocks.{i}.gamma3"),
    Rule(f"{BLOCK}.scale2.gamma", "blocks.{i}.gamma2"),
    *timm_block(CLASS, "cls_attn_blocks.{i}", qkv=False),
    Rule(f"{CLASS}.scale1.gamma", "cls_attn_blocks.{i}.gamma1"),
    Rule(f"{CLASS}.scale2.gamma", "cls_attn_blocks.{i}.gamma2"),
    Rule("norm.{p}", "norm.{p}"),
    Rule("head.{p}", "head.{p}"),
)


def _positions(theirs: str) -> tuple[Rule, Rule]:
    return (
        Rule("positions.proj.weight", f"{theirs}.token_projection.weight", POINTWISE),
        Rule("positions.proj.bias", f"{theirs}.token_projection.bias"),
    )


OURS = own_format("blocks.0.attention.kernel.temperature")
TIMM = Format(
    name="timm",
    marks=("cls_attn_blocks.0.attn.q.weight",),
    rules=(
        *_COMMON,
        *_positions("pos_embed"),
        Rule(f"{CLASS}.attention.to_q.{{p}}", "cls_attn_blocks.{i}.attn.q.{p}"),
        Rule(
            f"{CLASS}.attention.to_kv.{{p}}",
            ("cls_attn_blocks.{i}.attn.k.{p}", "cls_attn_blocks.{i}.attn.v.{p}"),
            stack(2),
        ),
    ),
)
AUTHORS = Format(
    name="xcit",
    marks=("cls_attn_blocks.0.attn.qkv.weight",),
    rules=(
        *_COMMON,
        *_positions("pos_embeder"),
        Rule(
            (f"{CLASS}.attention.to_q.{{p}}", f"{CLASS}.attention.to_kv.{{p}}"),
            "cls_attn_blocks.{i}.attn.qkv.{p}",
            QUERY_APART,
        ),
    ),
)
FORMATS = (OURS, TIMM, AUTHORS)
