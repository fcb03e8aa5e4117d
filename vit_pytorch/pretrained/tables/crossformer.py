"""Checkpoints of CrossFormer."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "stages.{i}.blocks.{j}"
THEIRS = "layers.{i}.blocks.{j}"
BIAS = f"{BLOCK}.attention.bias"
LATER_STAGES = range(1, 8)

OURS = own_format("stages.0.blocks.0.attention.bias.embed.weight")
AUTHORS = Format(
    name="crossformer",
    marks=("layers.0.blocks.0.attn.pos.pos_proj.weight",),
    # Buffers, in files of earlier versions of the authors' code.
    unused=(f"{THEIRS}.attn.biases", f"{THEIRS}.attn.relative_position_index", f"{THEIRS}.attn_mask"),
    rules=(
        Rule("stages.0.down.0.convs.{j}.{p}", "patch_embed.projs.{j}.{p}"),
        Rule("stages.0.down.1.{p}", "patch_embed.norm.{p}"),
        *timm_block(BLOCK, THEIRS, attention="attention.attention"),
        Rule(f"{BIAS}.embed.{{p}}", f"{THEIRS}.attn.pos.pos_proj.{{p}}"),
        *(Rule(f"{BIAS}.layers.{k}.{{name}}", f"{THEIRS}.attn.pos.pos{k + 1}.{{name}}") for k in range(3)),
        *(Rule(f"stages.{i}.down.0.{{p}}", f"layers.{i - 1}.downsample.norm.{{p}}") for i in LATER_STAGES),
        *(
            Rule(f"stages.{i}.down.1.convs.{{j}}.{{p}}", f"layers.{i - 1}.downsample.reductions.{{j}}.{{p}}")
            for i in LATER_STAGES
        ),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, AUTHORS)
