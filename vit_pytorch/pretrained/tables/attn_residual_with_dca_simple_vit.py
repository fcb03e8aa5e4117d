"""Checkpoints of the SimpleViT that chooses from its layers."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.blocks import UNBIASED
from vit_pytorch.pretrained.tables.vit import PATCHES

# In groups, weights are those of a convolution there is an axis more.
GROUPED = Transform(
    lambda parts, module: parts[0].view_as(module.proj.weight), lambda tensor, module: (tensor.flatten(1),)
)
QUERIES = Transform(
    lambda parts, module: parts[0].flatten(0, 1),
    lambda tensor, module: (tensor.unflatten(0, (-1, module.groups)),),
)
_BLOCK, _LAYER = "blocks.{i}", "transformer.layers.{i}"


def _feedforward(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.norm.{{p}}", f"{theirs}.0.{{p}}"),
        Rule(f"{ours}.to_hidden.proj.weight", f"{theirs}.1.weight", GROUPED),
        Rule(f"{ours}.to_hidden.proj.bias", f"{theirs}.1.bias"),
        Rule(f"{ours}.to_out.{{p}}", f"{theirs}.3.{{p}}"),
    )


PUBLIC = Format(
    name="vit-pytorch SimpleViT with attention residuals and DCA",
    marks=("transformer.layers.0.attn_res.pseudo_queries",),
    rules=(
        *(
            Rule(
                (f"patch_embed.norm_{at}.weight", f"patch_embed.norm_{at}.bias"), f"{theirs}.weight", UNBIASED
            )
            for at, theirs in (("in", "to_patch_embedding.1"), ("out", "to_patch_embedding.3"))
        ),
        Rule("patch_embed.proj.weight", "to_patch_embedding.2.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
        *_feedforward("initial", "initial_ff"),
        *_feedforward(f"{_BLOCK}.feedforward", f"{_LAYER}.ff"),
        *(
            rule
            for ours, theirs in (("mix1", "attn_res"), ("mix2", "ffn_res"))
            for rule in (
                Rule(f"{_BLOCK}.{ours}.norm.weight", f"{_LAYER}.{theirs}.norm.weight"),
                Rule(f"{_BLOCK}.{ours}.to_scores.weight", f"{_LAYER}.{theirs}.pseudo_queries", QUERIES),
            )
        ),
        *(
            Rule(f"{_BLOCK}.attention.input_norms.{index}.weight", f"{_LAYER}.attn.norm_{part}.weight")
            for index, part in enumerate("qkv")
        ),
        *(
            Rule(f"{_BLOCK}.attention.to_{part}.proj.weight", f"{_LAYER}.attn.to_{theirs}.weight", GROUPED)
            for part, theirs in (*((x, x) for x in "qkv"), ("gate", "gate.0"))
        ),
        Rule(f"{_BLOCK}.attention.to_out.weight", f"{_LAYER}.attn.to_out.weight"),
        Rule("norm.weight", "transformer.norm.weight"),
        Rule("head.{p}", "linear_head.{p}"),
    ),
)

FORMATS = (own_format("blocks.0.attention.to_q.proj.weight"), PUBLIC)
