"""Checkpoints of ViTamin: timm's, and those of models of images and texts around it."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.blocks import timm_block
from vit_pytorch.pretrained.tables.mbconv import layer_rules
from vit_pytorch.pretrained.tables.towers import LINEAR, OPENAI_CLIP

BLOCK = "blocks.{i}"
# Layers of an MBConv-LN, timm's name, and what kind of rule carries them.
MBCONV = (
    ("norm", "pre_norm", "{p}"),
    ("expand", "conv1_1x1", "1 x 1"),
    ("conv.layers.0", "conv2_kxk", "{p}"),
    ("project", "conv3_1x1", "1 x 1"),
    # A first block of a stage pools before it projects.
    ("shortcut.1", "shortcut.expand", "1 x 1"),
)

OURS = own_format("patch_embed.stem.layers.0.weight")
TIMM = Format(
    name="timm",
    marks=("patch_embed.backbone.stem.conv1.weight",),
    # the texts' encoder of a model of both
    unused=(*OPENAI_CLIP.unused, "/logit_bias"),
    rules=(
        Rule("patch_embed.stem.layers.0.{p}", "patch_embed.backbone.stem.conv1.{p}"),
        Rule("patch_embed.stem.layers.1.{p}", "patch_embed.backbone.stem.norm1.{p}"),
        Rule("patch_embed.stem.layers.3.{p}", "patch_embed.backbone.stem.conv2.{p}"),
        *(
            rule
            for ours, theirs, kind in MBCONV
            for rule in layer_rules(
                f"patch_embed.stages.{{i}}.{{j}}.{ours}",
                f"patch_embed.backbone.stages.{{i}}.{{j}}.{theirs}",
                kind,
            )
        ),
        Rule("patch_embed.norm.{p}", "patch_embed.backbone.pool.norm.{p}"),
        Rule("patch_embed.proj.layers.0.{p}", "patch_embed.backbone.pool.proj.{p}"),
        Rule("positions.table", "pos_embed"),
        Rule(f"{BLOCK}.norm3.{{p}}", "blocks.{i}.mlp.norm.{p}"),
        Rule(
            f"{BLOCK}.feedforward.to_hidden.{{p}}",
            ("blocks.{i}.mlp.w1.{p}", "blocks.{i}.mlp.w0.{p}"),
            stack(2),
        ),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", "blocks.{i}.mlp.w2.{p}"),
        *timm_block(BLOCK, "blocks.{i}"),
        Rule("fc_norm.{p}", "fc_norm.{p}"),
        Rule("head.{p}", "head.{p}"),
        # The projection to the dimensions of texts is the classifier.
        Rule(("head.weight", "head.bias"), "/visual.head.proj.weight", LINEAR),
    ),
)
FORMATS = (OURS, TIMM)
