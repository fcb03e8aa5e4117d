"""Checkpoints of DeepViT: ours and the authors' official ones, most of whose names are timm's."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule
from vit_pytorch.pretrained.tables.blocks import POINTWISE
from vit_pytorch.pretrained.tables.vit import BLOCK, OURS, TIMM

KERNEL = f"{BLOCK}.attention.kernel"

OFFICIAL = Format(
    name="DeepViT",
    marks=TIMM.marks,
    rules=(
        Rule(f"{KERNEL}.mix.weight", "blocks.{i}.attn.reatten_matrix.weight", POINTWISE),
        Rule(f"{KERNEL}.mix.bias", "blocks.{i}.attn.reatten_matrix.bias"),
        Rule(f"{KERNEL}.norm.{{name}}", "blocks.{i}.attn.var_norm.{name}"),
        Rule("patch_embed.convs.0.weight", "patch_embed.conv1.weight"),
        Rule("patch_embed.convs.1.{name}", "patch_embed.bn1.{name}"),
        Rule("patch_embed.convs.3.weight", "patch_embed.conv2.weight"),
        Rule("patch_embed.convs.4.{name}", "patch_embed.bn2.{name}"),
        *TIMM.rules,
    ),
)

FORMATS = (OURS, OFFICIAL)
