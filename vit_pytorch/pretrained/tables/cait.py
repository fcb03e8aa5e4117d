"""Checkpoints of CaiT: timm's, whose names are those of the authors' files."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "blocks.{i}"
ATTENTION = f"{BLOCK}.attention"
CLASS_BLOCK = "class_blocks.{i}"
CLASS_ATTENTION = f"{CLASS_BLOCK}.attention"

OURS = own_format("blocks.0.attention.kernel.mix_scores.weight")


def _block(ours: str, theirs: str, *, qkv: bool) -> tuple[Rule, ...]:
    return (
        *timm_block(ours, theirs, qkv=qkv),
        Rule(f"{ours}.scale1.gamma", f"{theirs}.gamma_1"),
        Rule(f"{ours}.scale2.gamma", f"{theirs}.gamma_2"),
    )


TIMM = Format(
    name="timm",
    marks=("blocks.0.attn.proj_l.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        Rule(f"{ATTENTION}.kernel.mix_scores.weight", "blocks.{i}.attn.proj_l.weight"),
        Rule(f"{ATTENTION}.kernel.mix_scores.bias", "blocks.{i}.attn.proj_l.bias"),
        Rule(f"{ATTENTION}.kernel.mix_weights.weight", "blocks.{i}.attn.proj_w.weight"),
        Rule(f"{ATTENTION}.kernel.mix_weights.bias", "blocks.{i}.attn.proj_w.bias"),
        *_block(BLOCK, "blocks.{i}", qkv=True),
        Rule(f"{CLASS_ATTENTION}.to_q.{{p}}", "blocks_token_only.{i}.attn.q.{p}"),
        Rule(
            f"{CLASS_ATTENTION}.to_kv.{{p}}",
            ("blocks_token_only.{i}.attn.k.{p}", "blocks_token_only.{i}.attn.v.{p}"),
            stack(2),
        ),
        *_block(CLASS_BLOCK, "blocks_token_only.{i}", qkv=False),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)

FORMATS = (OURS, TIMM)
