"""Checkpoints of CaiT: timm's, whose names are those of the authors' files."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack

BLOCK = "encoder.blocks.{i}"
ATTENTION = f"{BLOCK}.attention.branch"
CLASS_BLOCK = "class_encoder.blocks.{i}"
CLASS_ATTENTION = f"{CLASS_BLOCK}.attention.branch"

# A linear layer over the heads as the 1 x 1 convolution that it equals.
POINTWISE = Transform(
    lambda parts, module: parts[0][..., None, None], lambda tensor, module: (tensor.flatten(1),)
)

OURS = Format(
    name="vit_pytorch",
    marks=("encoder.blocks.0.attention.branch.attend.mix_scores.weight",),
    rules=(Rule("{name}", "{name}"),),
)


def _rest_of_block(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.attention.norm.{{p}}", f"{theirs}.norm1.{{p}}"),
        Rule(f"{ours}.attention.branch.to_out.{{p}}", f"{theirs}.attn.proj.{{p}}"),
        Rule(f"{ours}.attention.tail.0.gamma", f"{theirs}.gamma_1"),
        Rule(f"{ours}.feedforward.norm.{{p}}", f"{theirs}.norm2.{{p}}"),
        Rule(f"{ours}.feedforward.branch.to_hidden.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{ours}.feedforward.branch.to_out.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
        Rule(f"{ours}.feedforward.tail.0.gamma", f"{theirs}.gamma_2"),
    )


TIMM = Format(
    name="timm",
    marks=("blocks.0.attn.proj_l.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        Rule(f"{ATTENTION}.to_qkv.{{p}}", "blocks.{i}.attn.qkv.{p}"),
        Rule(f"{ATTENTION}.attend.mix_scores.weight", "blocks.{i}.attn.proj_l.weight", POINTWISE),
        Rule(f"{ATTENTION}.attend.mix_scores.bias", "blocks.{i}.attn.proj_l.bias"),
        Rule(f"{ATTENTION}.attend.mix_weights.weight", "blocks.{i}.attn.proj_w.weight", POINTWISE),
        Rule(f"{ATTENTION}.attend.mix_weights.bias", "blocks.{i}.attn.proj_w.bias"),
        *_rest_of_block(BLOCK, "blocks.{i}"),
        Rule(f"{CLASS_ATTENTION}.to_q.{{p}}", "blocks_token_only.{i}.attn.q.{p}"),
        Rule(
            f"{CLASS_ATTENTION}.to_kv.{{p}}",
            ("blocks_token_only.{i}.attn.k.{p}", "blocks_token_only.{i}.attn.v.{p}"),
            stack(2),
        ),
        *_rest_of_block(CLASS_BLOCK, "blocks_token_only.{i}"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)

FORMATS = (OURS, TIMM)
