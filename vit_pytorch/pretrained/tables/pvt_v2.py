"""Checkpoints of PVT v2."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format, stack
from vit_pytorch.pretrained.tables.blocks import POINTWISE, timm_block

BLOCK = "stages.{i}.blocks.{j}"
ATTENTION = f"{BLOCK}.attention.attention"
STAGES = range(8)


def _embedding(stage: str, theirs: str, norm: str = "norm") -> tuple[Rule, ...]:
    """Return the rules of overlapping patches."""
    return (
        Rule(f"{stage}.down.0.layers.0.{{p}}", f"{theirs}.proj.{{p}}"),
        Rule(f"{stage}.down.1.{{p}}", f"{theirs}.{norm}.{{p}}"),
    )


def _summary(conv: str, norm: str, block: str = BLOCK) -> tuple[Rule, ...]:
    """Return the rules of summaries, which a convolution makes or, in linear attention, a linear layer."""
    ours = f"{block}.attention.summary"
    return (
        Rule(f"{ours}.0.layers.0.{{p}}", f"{conv}.{{p}}"),
        Rule(f"{ours}.1.{{p}}", f"{norm}.{{p}}"),
        Rule(f"{ours}.project.weight", f"{conv}.weight", POINTWISE),
        Rule(f"{ours}.project.bias", f"{conv}.bias"),
        Rule(f"{ours}.norm.{{p}}", f"{norm}.{{p}}"),
    )


def _block(ours: str, theirs: str, conv: str) -> tuple[Rule, ...]:
    """Return the rules of a block as timm and the authors name it, but for the convolution."""
    return (
        *timm_block(ours, theirs, qkv=False, attention="attention.attention"),
        *(Rule(f"{ours}.attention.attention.to_{n}.{{p}}", f"{theirs}.attn.{n}.{{p}}") for n in ("q", "kv")),
        *_summary(f"{theirs}.attn.sr", f"{theirs}.attn.norm", ours),
        Rule(f"{ours}.feedforward.conv.layers.0.{{p}}", f"{theirs}.mlp.{conv}.{{p}}"),
    )


OURS = own_format("stages.0.blocks.0.feedforward.conv.layers.0.weight")
TIMM = Format(
    name="timm",
    marks=("stages.0.blocks.0.mlp.dwconv.weight",),
    rules=(
        *_embedding("stages.0", "patch_embed"),
        *_embedding("stages.{i}", "stages.{i}.downsample"),
        *_block(BLOCK, BLOCK, "dwconv"),
        Rule("stages.{i}.norm.{p}", "stages.{i}.norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)
AUTHORS = Format(
    name="PVT",
    marks=("block1.0.mlp.dwconv.dwconv.weight",),
    rules=(
        *(rule for i in STAGES for rule in _embedding(f"stages.{i}", f"patch_embed{i + 1}")),
        *(
            rule
            for i in STAGES
            for rule in _block(f"stages.{i}.blocks.{{j}}", f"block{i + 1}.{{j}}", "dwconv.dwconv")
        ),
        *(Rule(f"stages.{i}.norm.{{p}}", f"norm{i + 1}.{{p}}") for i in STAGES),
        Rule("head.{p}", "head.{p}"),
    ),
)
LAYER = "encoder.layers.{i}"
THEIRS = f"{LAYER}.blocks.{{j}}"
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.layers.0.patch_embedding.proj.weight",),
    prefix="pvt_v2.",
    rules=(
        *_embedding("stages.{i}", f"{LAYER}.patch_embedding", "layer_norm"),
        *(Rule(f"{BLOCK}.norm{k}.{{p}}", f"{THEIRS}.layer_norm_{k}.{{p}}") for k in (1, 2)),
        Rule(f"{ATTENTION}.to_q.{{p}}", f"{THEIRS}.attention.query.{{p}}"),
        *(
            Rule(
                f"{ATTENTION}.to_kv.{kind}",
                tuple(f"{THEIRS}.attention.{name}.{kind}" for name in ("key", "value")),
                stack(2),
            )
            for kind in ("weight", "bias")
        ),
        Rule(f"{ATTENTION}.to_out.{{p}}", f"{THEIRS}.attention.proj.{{p}}"),
        *_summary(f"{THEIRS}.attention.spatial_reduction", f"{THEIRS}.attention.layer_norm"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIRS}.mlp.dense1.{{p}}"),
        Rule(f"{BLOCK}.feedforward.conv.layers.0.{{p}}", f"{THEIRS}.mlp.dwconv.dwconv.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIRS}.mlp.dense2.{{p}}"),
        Rule("stages.{i}.norm.{p}", f"{LAYER}.layer_norm.{{p}}"),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
FORMATS = (OURS, TIMM, AUTHORS, TRANSFORMERS)
