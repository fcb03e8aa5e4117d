"""Checkpoints of SepViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import positioned_stages

BLOCK = "stages.{i}.blocks.{j}.attention"
THEIRS = "blocks.{i}.{j}.attn"

# Theirs have an axis for the place in the window, which is the first.
TOKENS = Transform(lambda parts, module: parts[0].squeeze(2), lambda table, module: (table.unsqueeze(2),))

OURS = own_format("stages.0.blocks.0.attention.to_token_qk.weight")
AUTHORS = Format(
    name="sepvit",
    marks=("blocks.0.0.attn.DSA_qkv.weight",),
    rules=(
        *positioned_stages(),
        Rule(f"{BLOCK}.to_qkv.{{p}}", f"{THEIRS}.DSA_qkv.{{p}}"),
        Rule(f"{BLOCK}.to_out.{{p}}", f"{THEIRS}.proj.{{p}}"),
        Rule(f"{BLOCK}.token_norm.0.{{p}}", f"{THEIRS}.win_tokens_norm.{{p}}"),
        Rule(f"{BLOCK}.to_token_qk.{{p}}", f"{THEIRS}.PSA_qk.{{p}}"),
        Rule(f"{BLOCK}.tokens.table", "blocks.{i}.{j}.win_tokens", TOKENS),
    ),
)
FORMATS = (OURS, AUTHORS)
