"""Checkpoints of looped ViTs."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.vit import ROWS

BLOCK = {
    "norm1.{p}": "0.norm.{p}",
    "attention.to_qkv.weight": "0.to_qkv.weight",
    "attention.to_gate.weight": "0.to_gate.weight",
    "attention.to_out.weight": "0.to_out.0.weight",
    "norm2.{p}": "1.net.0.{p}",
    "feedforward.to_hidden.{p}": "1.net.1.{p}",
    "feedforward.to_out.{p}": "1.net.4.{p}",
}
GATE = {
    "queries": "queries",
    "norm.{p}": "norm_kv.{p}",
    "to_kv.weight": "to_kv.weight",
    "to_out.weight": "to_out.weight",
    "norm_out.{p}": "mlp.0.{p}",
    "to_hidden.{p}": "mlp.1.{p}",
    "to_gain.{p}": "mlp.4.{p}",
}
PUBLIC = Format(
    name="vit-pytorch LoopedViT",
    marks=("pre_loop.layers.0.0.to_qkv.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token", ROWS),
        Rule("positions.table", "pos_embedding", ROWS),
        Rule("patch_embed.proj.{p}", "to_patch_embedding.1.{p}"),
        Rule("patch_embed.norm.{p}", "to_patch_embedding.2.{p}"),
        *(
            Rule(f"{stage}.{{i}}.{ours}", f"{stage}.layers.{{i}}.{theirs}")
            for stage in ("pre_loop", "looped", "post_loop")
            for ours, theirs in BLOCK.items()
        ),
        *(Rule(f"exit_gate.{ours}", f"exit_gate.{theirs}") for ours, theirs in GATE.items()),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "mlp_head.{p}"),
    ),
)

FORMATS = (own_format("pre_loop.0.attention.to_qkv.weight"), PUBLIC)
