"""Checkpoints of the parallel ViT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables import vit

ATTENTION = "blocks.{i}.attention.{j}"
FEEDFORWARD = "blocks.{i}.feedforward.{j}"
AROUND = tuple(rule for rule in vit.TIMM.rules if not rule.names[0].startswith("blocks."))


def _branch(ours: str, theirs: str, names: tuple[str, str, str, str, str]) -> tuple[Rule, ...]:
    """One branch as timm has it: norm, first and last layer, factors."""
    norm, first, last, scale, inner = names
    return (
        Rule(f"{ours}.norm.{{p}}", f"{theirs}.{norm}.{{p}}"),
        Rule(f"{ours}.branch.{inner}.{{p}}", f"{theirs}.{first}.{{p}}"),
        Rule(f"{ours}.branch.to_out.{{p}}", f"{theirs}.{last}.{{p}}"),
        Rule(f"{ours}.scale.gamma", f"{theirs}.{scale}"),
    )


OURS = own_format("blocks.0.attention.0.branch.to_qkv.weight")

TIMM = Format(
    name="timm",
    marks=("blocks.0.attns.0.attn.qkv.weight",),
    rules=(
        *AROUND,
        *_branch(ATTENTION, "blocks.{i}.attns.{j}", ("norm", "attn.qkv", "attn.proj", "ls.gamma", "to_qkv")),
        *_branch(FEEDFORWARD, "blocks.{i}.ffns.{j}", ("norm", "mlp.fc1", "mlp.fc2", "ls.gamma", "to_hidden")),
    ),
)


def _authors_block(branch: int) -> tuple[Rule, ...]:
    """The authors number the second branch alone: norm1 and norm11, gamma_1 and gamma_1_1."""
    last, scale = ("1", "_1") if branch else ("", "")
    attention, feedforward = (name.replace("{j}", str(branch)) for name in (ATTENTION, FEEDFORWARD))
    first = (f"norm1{last}", f"attn{last}.qkv", f"attn{last}.proj", f"gamma_1{scale}", "to_qkv")
    second = (f"norm2{last}", f"mlp{last}.fc1", f"mlp{last}.fc2", f"gamma_2{scale}", "to_hidden")
    return *_branch(attention, "blocks.{i}", first), *_branch(feedforward, "blocks.{i}", second)


DEIT = Format(
    name="deit",
    marks=("blocks.0.attn1.qkv.weight",),
    rules=(*AROUND, *_authors_block(0), *_authors_block(1)),
)

PUBLIC = Format(
    name="vit-pytorch parallel ViT",
    marks=("transformer.layers.0.0.fns.0.to_qkv.weight",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("positions.table", "pos_embedding"),
        Rule("patch_embed.proj.weight", "to_patch_embedding.1.weight", vit.PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
        Rule(f"{ATTENTION}.norm.{{p}}", "transformer.layers.{i}.0.fns.{j}.norm.{p}"),
        Rule(f"{ATTENTION}.branch.to_qkv.weight", "transformer.layers.{i}.0.fns.{j}.to_qkv.weight"),
        Rule(f"{ATTENTION}.branch.to_out.{{p}}", "transformer.layers.{i}.0.fns.{j}.to_out.0.{p}"),
        Rule(f"{FEEDFORWARD}.norm.{{p}}", "transformer.layers.{i}.1.fns.{j}.net.0.{p}"),
        Rule(f"{FEEDFORWARD}.branch.to_hidden.{{p}}", "transformer.layers.{i}.1.fns.{j}.net.1.{p}"),
        Rule(f"{FEEDFORWARD}.branch.to_out.{{p}}", "transformer.layers.{i}.1.fns.{j}.net.4.{p}"),
        # The final norm stands in their head, behind the pooling.
        Rule("norm.{p}", "mlp_head.0.{p}"),
        Rule("head.{p}", "mlp_head.1.{p}"),
    ),
)

FORMATS = (OURS, TIMM, DEIT, PUBLIC)
