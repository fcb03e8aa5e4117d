"""Checkpoints of the ViT for small datasets, as its authors' code writes them."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, OURS, OUT, PATCHES, QKV

_ATTENTION = "transformer.layers.{i}.0"
_FEEDFORWARD = "transformer.layers.{i}.1"
SPT_LSA_VIT = Format(
    name="SPT_LSA_ViT",
    marks=("transformer.layers.0.0.fn.to_qkv.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embedding"),
        Rule("patch_embed.norm.{p}", "to_patch_embedding.merging.1.{p}"),
        Rule("patch_embed.linear.{p}", "to_patch_embedding.merging.2.{p}"),
        Rule("patch_embed.proj.weight", "to_patch_embedding.1.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{_ATTENTION}.norm.{{p}}"),
        Rule(f"{QKV}.weight", f"{_ATTENTION}.fn.to_qkv.weight"),
        Rule(f"{BLOCK}.attention.kernel.temperature.factors", f"{_ATTENTION}.fn.scale"),
        Rule(f"{OUT}.{{p}}", f"{_ATTENTION}.fn.to_out.0.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{_FEEDFORWARD}.norm.{{p}}"),
        Rule(f"{HIDDEN}.{{p}}", f"{_FEEDFORWARD}.fn.net.0.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{_FEEDFORWARD}.fn.net.3.{{p}}"),
        Rule("fc_norm.{p}", "mlp_head.0.{p}"),
        Rule("head.{p}", "mlp_head.1.{p}"),
    ),
)

FORMATS = (OURS, SPT_LSA_VIT)
