"""Checkpoints of the public package's policies that read a tower's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format
from vit_pytorch.pretrained.tables.na_vit import Q_KV
from vit_pytorch.pretrained.tables.vit import PATCHES, ROWS

VIEWS = Transform(lambda parts, module: parts[0][:, None, None], lambda tensor, module: (tensor[:, 0, 0],))
FRAMES = Transform(lambda parts, module: parts[0][:, None], lambda tensor, module: (tensor[:, 0],))


def _gain_less_one(parts: Sequence[Tensor], film: Any) -> Tensor:
    gain, shift = parts[0].chunk(2)
    return torch.cat([gain - 1, shift])


def _gain(bias: Tensor, film: Any) -> Sequence[Tensor]:
    gain, shift = bias.chunk(2)
    return (torch.cat([gain + 1, shift]),)


GAIN = Transform(_gain_less_one, _gain)


def attention(ours: str, norm: str, theirs: str, *context_norm: tuple[str, str]) -> tuple[Rule, ...]:
    """Return the rules of an attention with queries of its own, and of its norms.

    Args:
        ours: our name of the attention.
        norm: our name of the norm before it.
        theirs: their name of the attention.
        context_norm: our name of the norm of what it reads, and theirs inside the attention.
    """
    return (
        Rule(f"{norm}.{{p}}", f"{theirs}.norm.{{p}}"),
        *(Rule(f"{own}.{{p}}", f"{theirs}.{other}.{{p}}") for own, other in context_norm),
        Rule(f"{ours}.to_q.{{p}}", f"{theirs}.to_q.{{p}}"),
        Rule(f"{ours}.to_kv.{{p}}", f"{theirs}.to_kv.{{p}}"),
        Rule(f"{ours}.to_gates.{{p}}", f"{theirs}.to_out_gates.0.{{p}}"),
        Rule(f"{ours}.to_out.{{p}}", f"{theirs}.to_out.0.{{p}}"),
    )


LAYER, BLOCK, TOWER = "decoder.blocks.{i}", "vit.blocks.{i}", "vit.layers.{i}"
# what the policies have around their layers' attention, whatever they read
DECODER = (
    Rule("decoder.registers", "register_tokens"),
    Rule("decoder.action_tokens", "action_pos_emb"),
    Rule("decoder.task_embed.weight", "task_emb"),
    Rule("decoder.advantage_embed.weight", "advantage_emb.weight"),
    Rule("decoder.to_extra.{p}", "to_extra_token.{p}"),
    Rule(f"{LAYER}.film.linear.weight", "layers.{i}.0.to_gamma_beta.0.weight"),
    Rule(f"{LAYER}.film.linear.bias", "layers.{i}.0.to_gamma_beta.0.bias", GAIN),
    Rule("decoder.norm.{p}", "final_norm.{p}"),
    Rule("decoder.to_actions.weight", "to_pred_action.weight"),
)
OURS = own_format("decoder.blocks.0.norms.0.weight")
PUBLIC = Format(
    name="vit-pytorch SigLIPVAT",
    marks=("layers.0.2.to_out_gates.0.weight",),
    rules=(
        Rule("vit.patch_embed.proj.weight", "vit.to_patch_embed.1.weight", PATCHES),
        Rule("vit.patch_embed.proj.bias", "vit.to_patch_embed.1.bias"),
        Rule("vit.positions.table", "vit.pos_embed", ROWS),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{TOWER}.0.norm.{{p}}"),
        Rule(f"{BLOCK}.attention.to_qkv.{{p}}", (f"{TOWER}.0.to_q.{{p}}", f"{TOWER}.0.to_kv.{{p}}"), Q_KV),
        Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{TOWER}.0.to_out.0.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{TOWER}.1.0.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{TOWER}.1.1.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{TOWER}.1.3.{{p}}"),
        Rule("vit.norm.{p}", "vit.norm.{p}"),
        Rule("scene.view_embed", "view_emb", VIEWS),
        Rule("scene.frame_embed", "time_pos_emb", FRAMES),
        *DECODER,
        *attention(f"{LAYER}.self_attention", f"{LAYER}.self_norm", "layers.{i}.1"),
        *attention(
            f"{LAYER}.attentions.0",
            f"{LAYER}.norms.0",
            "layers.{i}.2",
            (f"{LAYER}.context_norms.0", "norm_context"),
        ),
        Rule(f"{LAYER}.norm2.{{p}}", "layers.{i}.3.0.{p}"),
        Rule(f"{LAYER}.feedforward.to_hidden.{{p}}", "layers.{i}.3.1.{p}"),
        Rule(f"{LAYER}.feedforward.to_out.{{p}}", "layers.{i}.3.3.{p}"),
    ),
)
FORMATS = (OURS, PUBLIC)
