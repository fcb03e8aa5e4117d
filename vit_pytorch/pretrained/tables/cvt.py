"""Checkpoints of CvT."""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.blocks.{j}"
ATTENTION = f"{BLOCK}.attention"
OURS = own_format("stages.0.blocks.0.attention.convs.0.layers.0.conv.weight")


def _projections(conv: str, norm: str, linear: str, names: Sequence[str], stem: str) -> tuple[Rule, ...]:
    """Return the rules of the convolutions, their batch norms and the linear layers, in which `*` is a
    name."""
    rules = []
    for i, name in enumerate(names):
        ours = f"{ATTENTION}.convs.{i}.layers.0"
        rules.append(Rule(f"{ours}.conv.weight", f"{stem}.{conv.replace('*', name)}.weight"))
        rules.append(Rule(f"{ours}.norm.{{name}}", f"{stem}.{norm.replace('*', name)}.{{name}}"))
    for ours, name in zip("qkv", names, strict=True):
        rules.append(Rule(f"{ATTENTION}.to_{ours}.{{p}}", f"{stem}.{linear.replace('*', name)}.{{p}}"))
    return tuple(rules)


AUTHORS = Format(
    name="CvT",
    marks=("stage0.blocks.0.attn.conv_proj_q.conv.weight",),
    rules=(
        Rule("stages.{i}.down.proj.layers.0.{p}", "stage{i}.patch_embed.proj.{p}"),
        Rule("stages.{i}.down.norm.{p}", "stage{i}.patch_embed.norm.{p}"),
        Rule("stages.{i}.prefix.class_token", "stage{i}.cls_token"),
        *timm_block(BLOCK, "stage{i}.blocks.{j}", qkv=False),
        *_projections("conv_proj_*.conv", "conv_proj_*.bn", "proj_*", "qkv", "stage{i}.blocks.{j}.attn"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)

_LAYER = "encoder.stages.{i}.layers.{j}"
_EMBEDDING = "encoder.stages.{i}.embedding.convolution_embeddings"
_CONV = "convolution_projection_*.convolution_projection"
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.stages.0.embedding.convolution_embeddings.projection.weight",),
    prefix="cvt.",
    rules=(
        Rule("stages.{i}.down.proj.layers.0.{p}", f"{_EMBEDDING}.projection.{{p}}"),
        Rule("stages.{i}.down.norm.{p}", f"{_EMBEDDING}.normalization.{{p}}"),
        Rule("stages.{i}.prefix.class_token", "encoder.stages.{i}.cls_token"),
        *_projections(
            f"{_CONV}.convolution",
            f"{_CONV}.normalization",
            "projection_*",
            ("query", "key", "value"),
            f"{_LAYER}.attention.attention",
        ),
        Rule(f"{ATTENTION}.to_out.{{p}}", f"{_LAYER}.attention.output.dense.{{p}}"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{_LAYER}.layernorm_before.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{_LAYER}.layernorm_after.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{_LAYER}.intermediate.dense.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{_LAYER}.output.dense.{{p}}"),
        Rule("norm.{p}", "/layernorm.{p}"),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS, TRANSFORMERS)
