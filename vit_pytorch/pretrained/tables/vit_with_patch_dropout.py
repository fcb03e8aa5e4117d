"""Checkpoints of the ViT with patch dropout."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.pretrained.rules import Rule
from vit_pytorch.pretrained.tables.vit import OURS, PATCHES, PUBLIC_VIT

PUBLIC = replace(
    PUBLIC_VIT,
    name="vit-pytorch ViT with patch dropout",
    rules=(
        Rule("patch_embed.proj.weight", "to_patch_embedding.1.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
        Rule("fc_norm.{p}", "mlp_head.0.{p}"),
        Rule("head.{p}", "mlp_head.1.{p}"),
        *PUBLIC_VIT.rules,
    ),
)

FORMATS = (OURS, PUBLIC)
