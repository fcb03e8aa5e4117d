"""Checkpoints of SHViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.efficientvit_msra import conv_norm, linear_norm, local_mix, subsampling

BLOCK, DOWN, THEIR_DOWN = "stages.{i}.blocks.{j}", "stages.{i}.down", "stages.{i}.downsample"
ATTENTION, MIXER = f"{BLOCK}.attention", f"{BLOCK}.mixer.m"

OURS = own_format("stem.layers.0.conv.weight")
TIMM = Format(
    name="timm",
    marks=("patch_embed.0.c.weight",),
    rules=(
        *(rule for k in range(4) for rule in conv_norm(f"stem.layers.{k}", f"patch_embed.{2 * k}", "c")),
        *local_mix(f"{DOWN}.0", (f"{THEIR_DOWN}.0", f"{THEIR_DOWN}.1"), "c"),
        *subsampling(f"{DOWN}.1", f"{THEIR_DOWN}.2", "c"),
        *local_mix(f"{DOWN}.2", (f"{THEIR_DOWN}.3", f"{THEIR_DOWN}.4"), "c"),
        *local_mix(BLOCK, (f"{BLOCK}.conv", f"{BLOCK}.ffn"), "c"),
        Rule(f"{ATTENTION}.norm.{{p}}", f"{MIXER}.pre_norm.{{p}}"),
        *linear_norm(f"{ATTENTION}.to_qkv", f"{MIXER}.qkv", "c"),
        *linear_norm(f"{ATTENTION}.to_out", f"{MIXER}.proj.1", "c"),
        Rule("head.norm.{name}", "head.bn.{name}"),
        Rule("head.linear.{p}", "head.l.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
