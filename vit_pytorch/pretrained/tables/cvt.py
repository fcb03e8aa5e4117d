"""Checkpoints of CvT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.encoder.blocks.{j}"
ATTENTION = f"{BLOCK}.attention.branch"
QKV = {"q": "query", "k": "key", "v": "value"}

OURS = own_format("stages.0.encoder.blocks.0.attention.branch.conv_q.layers.0.conv.weight")
AUTHORS = Format(
    name="CvT",
    marks=("stage0.blocks.0.attn.conv_proj_q.conv.weight",),
    rules=(
        Rule("stages.{i}.down.proj.layers.0.{p}", "stage{i}.patch_embed.proj.{p}"),
        Rule("stages.{i}.down.norm.{p}", "stage{i}.patch_embed.norm.{p}"),
        Rule("stages.{i}.prefix.class_token", "stage{i}.cls_token"),
        *timm_block(BLOCK, "stage{i}.blocks.{j}", qkv=False),
        *(
            rule
            for x in QKV
            for rule in (
                Rule(
                    f"{ATTENTION}.conv_{x}.layers.0.conv.weight",
                    f"stage{{i}}.blocks.{{j}}.attn.conv_proj_{x}.conv.weight",
                ),
                Rule(
                    f"{ATTENTION}.conv_{x}.layers.0.norm.{{name}}",
                    f"stage{{i}}.blocks.{{j}}.attn.conv_proj_{x}.bn.{{name}}",
                ),
                Rule(f"{ATTENTION}.to_{x}.{{p}}", f"stage{{i}}.blocks.{{j}}.attn.proj_{x}.{{p}}"),
            )
        ),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)

_LAYER = "encoder.stages.{i}.layers.{j}"
_EMBEDDING = "encoder.stages.{i}.embedding.convolution_embeddings"
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.stages.0.embedding.convolution_embeddings.projection.weight",),
    prefix="cvt.",
    rules=(
        Rule("stages.{i}.down.proj.layers.0.{p}", f"{_EMBEDDING}.projection.{{p}}"),
        Rule("stages.{i}.down.norm.{p}", f"{_EMBEDDING}.normalization.{{p}}"),
        Rule("stages.{i}.prefix.class_token", "encoder.stages.{i}.cls_token"),
        *(
            rule
            for x, name in QKV.items()
            for conv in (
                f"{_LAYER}.attention.attention.convolution_projection_{name}.convolution_projection",
            )
            for rule in (
                Rule(f"{ATTENTION}.conv_{x}.layers.0.conv.weight", f"{conv}.convolution.weight"),
                Rule(f"{ATTENTION}.conv_{x}.layers.0.norm.{{name}}", f"{conv}.normalization.{{name}}"),
                Rule(f"{ATTENTION}.to_{x}.{{p}}", f"{_LAYER}.attention.attention.projection_{name}.{{p}}"),
            )
        ),
        Rule(f"{ATTENTION}.to_out.{{p}}", f"{_LAYER}.attention.output.dense.{{p}}"),
        Rule(f"{BLOCK}.attention.norm.{{p}}", f"{_LAYER}.layernorm_before.{{p}}"),
        Rule(f"{BLOCK}.feedforward.norm.{{p}}", f"{_LAYER}.layernorm_after.{{p}}"),
        Rule(f"{BLOCK}.feedforward.branch.to_hidden.{{p}}", f"{_LAYER}.intermediate.dense.{{p}}"),
        Rule(f"{BLOCK}.feedforward.branch.to_out.{{p}}", f"{_LAYER}.output.dense.{{p}}"),
        Rule("norm.{p}", "/layernorm.{p}"),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS, TRANSFORMERS)
