"""Checkpoints of ViViT with multi-order self-similarity."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform
from vit_pytorch.pretrained.tables.vit import OURS, PATCHES

PLACES = Transform(
    lambda parts, positions: parts[0].flatten(1, 2),
    lambda tensor, positions: (tensor.unflatten(1, (positions.grid[0], -1)),),
)
GAIN = Transform(lambda parts, module: parts[0].flatten(), lambda tensor, module: (tensor.view(1, -1, 1, 1),))


def _blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    block, layer = f"{ours}.{{i}}", f"{theirs}.layers.{{i}}"
    return (
        Rule(f"{block}.norm1.{{p}}", f"{layer}.0.norm.{{p}}"),
        Rule(f"{block}.attention.to_qkv.weight", f"{layer}.0.to_qkv.weight"),
        Rule(f"{block}.attention.to_out.{{p}}", f"{layer}.0.to_out.0.{{p}}"),
        Rule(f"{block}.norm2.{{p}}", f"{layer}.1.net.0.{{p}}"),
        Rule(f"{block}.feedforward.to_hidden.{{p}}", f"{layer}.1.net.1.{{p}}"),
        Rule(f"{block}.feedforward.to_out.{{p}}", f"{layer}.1.net.4.{{p}}"),
    )


PUBLIC = Format(
    name="vit-pytorch ViViT with MOSS",
    marks=("moss.to_out.weight",),
    rules=(
        Rule("patch_embed.norm_in.{p}", "to_patch_embedding.1.{p}"),
        Rule("patch_embed.proj.weight", "to_patch_embedding.2.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
        Rule("patch_embed.norm_out.{p}", "to_patch_embedding.3.{p}"),
        Rule("positions.table", "pos_embedding", PLACES),
        Rule("prefix.class_token", "spatial_cls_token"),
        Rule("temporal_prefix.class_token", "temporal_cls_token"),
        *_blocks("blocks", "spatial_transformer"),
        *_blocks("temporal_blocks", "temporal_transformer"),
        Rule("spatial_norm.{p}", "spatial_transformer.norm.{p}"),
        Rule("norm.{p}", "temporal_transformer.norm.{p}"),
        *(
            Rule(f"moss.encoders.{{i}}.{ours}.{{p}}", f"moss.encoders.{{i}}.{theirs}.{{p}}")
            for ours, theirs in (
                ("to_hidden", "spatial_to_hidden"),
                ("convs.0", "conv.0"),
                ("convs.1", "conv.3"),
                ("to_out", "time_to_out"),
            )
        ),
        *(
            Rule(f"moss.encoders.{{i}}.norms.{ours}.weight", f"moss.encoders.{{i}}.conv.{theirs}.gamma", GAIN)
            for ours, theirs in ((0, 1), (1, 4))
        ),
        Rule("moss.to_order_out.{i}.{p}", "moss.to_order_out.{i}.{p}"),
        Rule("moss.to_out.{p}", "moss.to_out.{p}"),
        Rule("fc_norm.{p}", "mlp_head.0.{p}"),
        Rule("head.{p}", "mlp_head.1.{p}"),
    ),
)

FORMATS = (OURS, PUBLIC)
