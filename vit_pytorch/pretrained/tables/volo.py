"""Checkpoints of VOLO: timm's, whose names are those of the authors' files."""

from __future__ import annotations

from typing import Any

from vit_pytorch.pretrained.rules import Format, Reference, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import timm_block

OUTLOOKER = "stages.0.blocks.{i}"
# Theirs are a map, rows and columns apart.
POSITIONS = Transform(
    lambda parts, coarsen: parts[0].flatten(1, 2),
    lambda table, coarsen: (table.unflatten(1, coarsen.positions.grid),),
)


def _stage(stage: int) -> tuple[Rule, ...]:
    """Return the rules of a stage of the transformer, before the first of which theirs count a layer."""
    return timm_block(f"stages.{stage}.blocks.{{i}}", f"network.{stage + 1}.{{i}}")


OURS = own_format("stages.0.blocks.0.attention.to_weights.weight")
TIMM = Format(
    name="timm",
    marks=("network.0.0.attn.attn.weight",),
    rules=(
        *(Rule(f"stem.layers.{n}.conv.weight", f"patch_embed.conv.{3 * n}.weight") for n in range(3)),
        *(Rule(f"stem.layers.{n}.norm.{{name}}", f"patch_embed.conv.{3 * n + 1}.{{name}}") for n in range(3)),
        Rule("stem.layers.3.{p}", "patch_embed.proj.{p}"),
        *timm_block(OUTLOOKER, "network.0.{i}", qkv=False),
        Rule(f"{OUTLOOKER}.attention.to_v.{{p}}", "network.0.{i}.attn.v.{p}"),
        Rule(f"{OUTLOOKER}.attention.to_weights.{{p}}", "network.0.{i}.attn.attn.{p}"),
        Rule("stages.1.down.conv.layers.0.{p}", "network.1.proj.{p}"),
        Rule("stages.1.down.positions.table", "pos_embed", POSITIONS),
        *(rule for stage in range(1, 8) for rule in _stage(stage)),
        Rule("prefix.class_token", "cls_token"),
        *timm_block("class_blocks.{i}", "post_network.{i}", qkv=False),
        Rule("class_blocks.{i}.attention.to_q.{p}", "post_network.{i}.attn.q.{p}"),
        Rule("class_blocks.{i}.attention.to_kv.{p}", "post_network.{i}.attn.kv.{p}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.classifier.{p}", "head.{p}"),
        Rule("head.dense.{p}", "aux_head.{p}"),
    ),
)
FORMATS = (OURS, TIMM)
SIZES: dict[str, Any] = {"num_classes": 7, "mlp_ratio": 2}
REFERENCES = (
    Reference(
        format="timm",
        name="timm.models.volo.VOLO",
        theirs={
            **SIZES,
            "img_size": 64,
            "layers": (2, 1, 2),
            "embed_dims": (24, 48, 48),
            "num_heads": (2, 4, 4),
            "downsamples": (True, False, False),
            "outlook_attention": (True, False, False),
            "stem_hidden_dim": 12,
        },
        ours={
            **SIZES,
            "image_size": 64,
            "depth": (2, 1, 2),
            "dim": (24, 48),
            "heads": (2, 4),
            "stem_dim": 12,
        },
    ),
)
