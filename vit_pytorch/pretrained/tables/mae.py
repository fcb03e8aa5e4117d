"""Checkpoints of whole masked autoencoders: what stands beside the encoder."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, stack
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "decoder.{i}"
POSITIONS = "decoder_pos_embed"

AUTHORS = Format(
    name="MAE",
    marks=("decoder_blocks.0.attn.qkv.weight",),
    unused=(POSITIONS,),
    rules=(
        Rule("mask_token", "mask_token"),
        Rule("to_decoder.{p}", "decoder_embed.{p}"),
        Rule("norm.{p}", "decoder_norm.{p}"),
        Rule("to_pixels.{p}", "decoder_pred.{p}"),
        *timm_block(BLOCK, "decoder_blocks.{i}"),
    ),
)

_LAYER = "decoder_layers.{i}"
# Files that release 5 writes.
_WRITTEN = "decoder_encoder.layer.{i}"
_QKV = f"{BLOCK}.attention.to_qkv.{{p}}"
_OUT = f"{BLOCK}.attention.to_out.{{p}}"
_HIDDEN = f"{BLOCK}.feedforward.to_hidden.{{p}}"
_CONTRACT = f"{BLOCK}.feedforward.to_out.{{p}}"
TRANSFORMERS = Format(
    name="transformers MAE",
    marks=("decoder_layers.0.layernorm_before.weight", "decoder_encoder.layer.0.layernorm_before.weight"),
    prefix="decoder.",
    unused=(POSITIONS,),
    rules=(
        Rule("mask_token", "mask_token"),
        Rule("to_decoder.{p}", "decoder_embed.{p}"),
        Rule("norm.{p}", "decoder_norm.{p}"),
        Rule("to_pixels.{p}", "decoder_pred.{p}"),
        *(
            rule
            for layer in (_LAYER, _WRITTEN)
            for rule in (
                Rule(f"{BLOCK}.norm1.{{p}}", f"{layer}.layernorm_before.{{p}}"),
                Rule(f"{BLOCK}.norm2.{{p}}", f"{layer}.layernorm_after.{{p}}"),
                Rule(
                    _QKV,
                    tuple(f"{layer}.attention.attention.{x}.{{p}}" for x in ("query", "key", "value")),
                    stack(3),
                ),
                Rule(_OUT, f"{layer}.attention.output.dense.{{p}}"),
                Rule(_HIDDEN, f"{layer}.intermediate.dense.{{p}}"),
                Rule(_CONTRACT, f"{layer}.output.dense.{{p}}"),
            )
        ),
        # Files keep the names above; a model in memory has these since release 5.
        Rule(_QKV, tuple(f"{_LAYER}.attention.{x}_proj.{{p}}" for x in "qkv"), stack(3)),
        Rule(_OUT, f"{_LAYER}.attention.o_proj.{{p}}"),
        Rule(_HIDDEN, f"{_LAYER}.mlp.fc1.{{p}}"),
        Rule(_CONTRACT, f"{_LAYER}.mlp.fc2.{{p}}"),
    ),
)

FORMATS = (AUTHORS, TRANSFORMERS)
