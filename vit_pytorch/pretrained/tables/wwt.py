"""Checkpoints of WWT."""

from __future__ import annotations

from vit_pytorch.pretrained.rules import Format, Rule, own_format
from vit_pytorch.pretrained.tables.blocks import POINTWISE, UNBIASED
from vit_pytorch.pretrained.tables.vit import PATCHES, ROWS

_LAYER = "layers.{i}"
_ATTENTION, _THEIRS = "blocks.{i}.attentions.{j}", f"{_LAYER}.attns.{{j}}"
PUBLIC = Format(
    name="vit-pytorch WWT",
    marks=("layers.0.attns.0.to_k_v_slots.weight",),
    rules=(
        *(
            Rule((f"patch_embed.{ours}.weight", f"patch_embed.{ours}.bias"), f"{theirs}.weight", UNBIASED)
            for ours, theirs in (("norm_in", "to_patch_embedding.1"), ("norm_out", "to_patch_embedding.3"))
        ),
        Rule("patch_embed.proj.weight", "to_patch_embedding.2.weight", PATCHES),
        Rule("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
        Rule("positions.table", "pos_embedding", ROWS),
        Rule("slots.{i}", "slots.{i}"),
        Rule("register_tokens", "register_tokens"),
        Rule("register_slots.{i}", "register_slots.{i}"),
        *(
            Rule(f"{_ATTENTION}.{name}.weight", f"{_THEIRS}.{name}.weight")
            for name in ("to_q_v_tokens", "to_k_v_slots")
        ),
        *(
            Rule(f"{_ATTENTION}.{name}.{{p}}", f"{_THEIRS}.{name}.0.{{p}}")
            for name in ("to_out_tokens", "to_out_slots")
        ),
        *(
            Rule(f"{_ATTENTION}.{name}.weight", f"{_THEIRS}.{name}.0.weight")
            for name in ("tokens_gate", "slots_gate")
        ),
        Rule(f"{_ATTENTION}.join.weight", f"{_THEIRS}.mask_project.weight", POINTWISE),
        Rule(f"{_ATTENTION}.join.bias", f"{_THEIRS}.mask_project.bias"),
        Rule(f"{_ATTENTION}.mask_norm.weight", f"{_THEIRS}.mlp_mask.0.weight"),
        Rule(f"{_ATTENTION}.mask_hidden.{{p}}", f"{_THEIRS}.mlp_mask.1.{{p}}"),
        Rule(f"{_ATTENTION}.mask_out.{{p}}", f"{_THEIRS}.mlp_mask.4.{{p}}"),
        Rule("blocks.{i}.norms.{j}.weight", f"{_LAYER}.norms.{{j}}.weight"),
        Rule("blocks.{i}.mlp_norms.{j}.weight", f"{_LAYER}.mlps.{{j}}.0.weight"),
        Rule("blocks.{i}.mlps.{j}.to_hidden.{p}", f"{_LAYER}.mlps.{{j}}.1.{{p}}"),
        Rule("blocks.{i}.mlps.{j}.to_out.{p}", f"{_LAYER}.mlps.{{j}}.4.{{p}}"),
        Rule("norm.weight", "mlp_head.0.weight"),
        Rule("head.{p}", "mlp_head.1.{p}"),
        Rule("token_norm.weight", "mlp_head_tokens.0.weight"),
        Rule("token_head.{p}", "mlp_head_tokens.1.{p}"),
    ),
)

FORMATS = (own_format("blocks.0.attentions.0.to_k_v_slots.weight"), PUBLIC)
