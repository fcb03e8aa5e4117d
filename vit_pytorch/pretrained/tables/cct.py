"""Checkpoints of CCT; the authors' and the public vit-pytorch package's have the same names."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, OURS, OUT, QKV

_BLOCK = "classifier.blocks.{i}"
COMPACT_TRANSFORMERS = Format(
    name="Compact-Transformers",
    marks=("classifier.attention_pool.weight",),
    fixed_positions=True,
    rules=(
        Rule("patch_embed.convs.{i}.weight", "tokenizer.conv_layers.{i}.0.weight"),
        Rule("positions.table", "classifier.positional_emb"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{_BLOCK}.pre_norm.{{p}}"),
        Rule(f"{QKV}.weight", f"{_BLOCK}.self_attn.qkv.weight"),
        Rule(f"{OUT}.{{p}}", f"{_BLOCK}.self_attn.proj.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{_BLOCK}.norm1.{{p}}"),
        Rule(f"{HIDDEN}.{{p}}", f"{_BLOCK}.linear1.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{_BLOCK}.linear2.{{p}}"),
        Rule("norm.{p}", "classifier.norm.{p}"),
        Rule("sequence_pool.score.{p}", "classifier.attention_pool.{p}"),
        Rule("head.{p}", "classifier.fc.{p}"),
    ),
)

FORMATS = (OURS, COMPACT_TRANSFORMERS)
