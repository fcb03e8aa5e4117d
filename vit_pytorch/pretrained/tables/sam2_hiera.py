"""Checkpoints of SAM 2's image encoder."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.hiera import BLOCK, OURS, THEIRS, WITHIN
from vit_pytorch.pretrained.tables.hiera import TIMM as HIERA

TIMM = replace(
    HIERA,
    marks=("blocks.0.mlp.fc1.weight",),
    rules=(Rule("stem.positions.within", "pos_embed_window", WITHIN), *HIERA.rules),
)
# What makes masks of features, and remembers them.
BESIDE = ("/{name}",)
AUTHORS = replace(
    TIMM,
    name="facebookresearch",
    marks=("blocks.0.mlp.layers.0.weight",),
    prefix="image_encoder.trunk.",
    unused=BESIDE,
    rules=(
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIRS}.mlp.layers.0.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIRS}.mlp.layers.1.{{p}}"),
        *TIMM.rules,
    ),
)
TRANSFORMERS = replace(
    TIMM,
    name="transformers",
    marks=("blocks.0.mlp.proj_in.weight",),
    prefix="vision_encoder.backbone.",
    unused=BESIDE,
    rules=(
        Rule("stem.embed.layers.0.{p}", "patch_embed.projection.{p}"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{THEIRS}.layer_norm1.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{THEIRS}.layer_norm2.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIRS}.mlp.proj_in.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIRS}.mlp.proj_out.{{p}}"),
        *TIMM.rules,
    ),
)
FORMATS = (OURS, AUTHORS, TRANSFORMERS, TIMM)
