"""Checkpoints of timm's second Swin V2."""

from __future__ import annotations

from typing import Any

from vit_pytorch.pretrained.rules import Format, Reference, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block
from vit_pytorch.pretrained.tables.swin import BLOCK, BRANCH

# One factor for each head, without the axes of tokens.
FACTORS = Transform(lambda parts, module: parts[0][:, None, None], lambda tensor, module: (tensor.flatten(),))
# Earlier files have the inverse of the factor instead of its logarithm.
TAU = Transform(
    lambda parts, module: -parts[0].flatten().log()[:, None, None],
    lambda tensor, module: (tensor.neg().exp().flatten(),),
)

OURS = own_format("stages.0.blocks.0.attention.bias.network.0.weight")
TIMM = Format(
    name="timm",
    marks=("stages.0.blocks.0.attn.meta_mlp.fc1.weight",),
    rules=(
        Rule("stem.0.layers.0.{p}", "patch_embed.proj.{p}"),
        Rule("stem.1.{p}", "patch_embed.norm.{p}"),
        Rule("stages.{i}.down.{name}", "stages.{i}.downsample.{name}"),
        *timm_block(BLOCK, BLOCK, attention="attention.attention"),
        Rule(f"{BLOCK}.norm_out.{{p}}", f"{BLOCK}.norm3.{{p}}"),
        Rule(f"{BRANCH}.q_norm.log_factor", f"{BLOCK}.attn.logit_scale", FACTORS),
        Rule(f"{BRANCH}.q_norm.log_factor", f"{BLOCK}.attn.tau", TAU),
        Rule(f"{BLOCK}.attention.bias.network.0.{{p}}", f"{BLOCK}.attn.meta_mlp.fc1.{{p}}"),
        Rule(f"{BLOCK}.attention.bias.network.2.{{p}}", f"{BLOCK}.attn.meta_mlp.fc2.{{p}}"),
        Rule("head.{p}", "head.fc.{p}"),
        # of earlier files
        Rule("head.{p}", "head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES: dict[str, Any] = {"num_classes": 7, "window_size": 4}
REFERENCES = (
    Reference(
        format="timm",
        name="timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr",
        theirs={
            **SIZES,
            "img_size": (52, 76),
            "embed_dim": 24,
            "depths": (2, 2, 2),
            "num_heads": (2, 3, 4),
            "extra_norm_stage": True,
        },
        ours={
            **SIZES,
            "image_size": (52, 76),
            "dim": 24,
            "depth": (2, 2, 2),
            "heads": (2, 3, 4),
            "norm_stages": True,
        },
    ),
)
