"""Checkpoints of NaViT: ours, timm's NaFlexViT, the public package's two."""

from __future__ import annotations

import torch

from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack
from vit_pytorch.pretrained.tables.blocks import CHANNELS_FIRST, TABLE
from vit_pytorch.pretrained.tables.vit import BLOCK, CONTRACT, HIDDEN, MAP, OURS, OUT, PATCHES, QKV, TIMM

EMBEDDED = ("prefix.", "positions.", "patch_embed.")
POOL = "attn_pool"

# Vectors of patches flattened in the order (channel, row, column) in ours, channel last.
PIXELS = Transform(
    lambda parts, embed: parts[0].unflatten(0, (-1, *embed.grid.patch)).movedim(0, -1).flatten(),
    lambda tensor, embed: (tensor.unflatten(0, (*embed.grid.patch, -1)).movedim(-1, 0).flatten(),),
)
QUERY = Transform(lambda parts, module: parts[0].view(1, 1, -1), lambda tensor, module: (tensor.flatten(),))
# Their norms keep a bias of zeros that is not learned.
GAIN = Transform(lambda parts, module: parts[0], lambda tensor, module: (tensor, torch.zeros_like(tensor)))
# Their scores are not divided by the root of a head's width; ours are.
SHARP = Transform(
    lambda parts, module: parts[0] * parts[0].shape[-1] ** 0.5,
    lambda tensor, module: (tensor / tensor.shape[-1] ** 0.5,),
)
Q_KV = Transform(
    lambda parts, module: torch.cat(list(parts)),
    lambda tensor, module: (tensor.chunk(3)[0], torch.cat(tensor.chunk(3)[1:])),
)

# Theirs are a map.
PLACES = Transform(
    lambda parts, module: parts[0].flatten(1, 2),
    lambda tensor, module: (tensor.unflatten(1, module.grid),),
)
NAFLEX = Format(
    name="timm",
    marks=("embeds.proj.weight",),
    rules=(
        Rule("prefix.class_token", "embeds.cls_token"),
        Rule("prefix.registers", "embeds.reg_token"),
        Rule("positions.table", "embeds.pos_embed", PLACES),
        Rule("positions.rows", "embeds.pos_embed_y"),
        Rule("positions.columns", "embeds.pos_embed_x"),
        Rule("patch_embed.proj.weight", "embeds.proj.weight", PATCHES),
        Rule("patch_embed.proj.bias", "embeds.proj.bias"),
        *(rule for rule in TIMM.rules if not rule.names[0].startswith(EMBEDDED)),
    ),
)


def _norm(ours: str, theirs: str) -> Rule:
    return Rule(f"{ours}.weight", (f"{theirs}.gamma", f"{theirs}.beta"), GAIN)


_LAYER = "transformer.layers.{i}"
_PUBLIC = (
    Rule("prefix.registers", "register_tokens", TABLE),
    Rule("positions.frames", "pos_embed_frame", TABLE),
    Rule("positions.rows", "pos_embed_height", TABLE),
    Rule("positions.columns", "pos_embed_width", TABLE),
    Rule("patch_embed.proj.weight", "to_patch_embedding.1.weight", CHANNELS_FIRST),
    Rule("patch_embed.proj.bias", "to_patch_embedding.1.bias"),
    Rule(f"{HIDDEN}.{{p}}", f"{_LAYER}.1.1.{{p}}"),
    Rule(f"{CONTRACT}.{{p}}", f"{_LAYER}.1.4.{{p}}"),
    Rule(f"{MAP}.query", "attn_pool_queries", QUERY),
    Rule("head.weight", "mlp_head.1.weight"),
)
PUBLIC_MASKED = Format(
    name="vit-pytorch NaViT",
    marks=("transformer.layers.0.0.to_kv.weight",),
    rules=(
        *_PUBLIC,
        Rule("patch_embed.norm_in.weight", "to_patch_embedding.0.gamma", PIXELS),
        Rule("patch_embed.norm_in.bias", "to_patch_embedding.0.beta", PIXELS),
        Rule("patch_embed.norm_out.weight", "to_patch_embedding.2.gamma"),
        Rule("patch_embed.norm_out.bias", "to_patch_embedding.2.beta"),
        _norm(f"{BLOCK}.norm1", f"{_LAYER}.0.norm"),
        Rule(f"{QKV}.weight", (f"{_LAYER}.0.to_q.weight", f"{_LAYER}.0.to_kv.weight"), Q_KV),
        Rule(f"{BLOCK}.attention.q_norm.weight", f"{_LAYER}.0.q_norm.gamma", SHARP),
        Rule(f"{BLOCK}.attention.k_norm.weight", f"{_LAYER}.0.k_norm.gamma"),
        Rule(f"{OUT}.weight", f"{_LAYER}.0.to_out.0.weight"),
        _norm(f"{BLOCK}.norm2", f"{_LAYER}.1.0"),
        _norm("norm", "transformer.norm"),
        _norm(f"{MAP}.norm", f"{POOL}.norm"),
        Rule(f"{MAP}.q_norm.weight", f"{POOL}.q_norm.gamma", SHARP),
        Rule(f"{MAP}.k_norm.weight", f"{POOL}.k_norm.gamma"),
        Rule(f"{MAP}.to_q.weight", f"{POOL}.to_q.weight"),
        Rule(f"{MAP}.to_kv.weight", f"{POOL}.to_kv.weight"),
        Rule(f"{MAP}.to_out.weight", f"{POOL}.to_out.0.weight"),
        _norm("fc_norm", "mlp_head.0"),
    ),
)
PUBLIC_NESTED = Format(
    name="vit-pytorch nested NaViT",
    marks=("transformer.layers.0.0.to_queries.weight",),
    rules=(
        *_PUBLIC,
        Rule("patch_embed.norm_in.{p}", "to_patch_embedding.0.{p}", PIXELS),
        Rule("patch_embed.norm_out.{p}", "to_patch_embedding.2.{p}"),
        Rule(f"{BLOCK}.norm1.weight", f"{_LAYER}.0.norm.weight"),
        Rule(
            f"{QKV}.weight",
            tuple(f"{_LAYER}.0.to_{part}.weight" for part in ("queries", "keys", "values")),
            stack(3),
        ),
        Rule(f"{BLOCK}.attention.q_norm.weight", f"{_LAYER}.0.query_norm.weight"),
        Rule(f"{BLOCK}.attention.k_norm.weight", f"{_LAYER}.0.key_norm.weight"),
        Rule(f"{OUT}.weight", f"{_LAYER}.0.to_out.weight"),
        Rule(f"{BLOCK}.norm2.weight", f"{_LAYER}.1.0.weight"),
        Rule("norm.weight", "transformer.norm.weight"),
        Rule(f"{MAP}.norm.weight", f"{POOL}.norm.weight"),
        Rule(f"{MAP}.q_norm.weight", f"{POOL}.query_norm.weight"),
        Rule(f"{MAP}.k_norm.weight", f"{POOL}.key_norm.weight"),
        Rule(f"{MAP}.to_q.weight", f"{POOL}.to_queries.weight"),
        Rule(
            f"{MAP}.to_kv.weight", tuple(f"{POOL}.to_{part}.weight" for part in ("keys", "values")), stack(2)
        ),
        Rule(f"{MAP}.to_out.weight", f"{POOL}.to_out.weight"),
        Rule("fc_norm.weight", "mlp_head.0.weight"),
    ),
)

FORMATS = (OURS, NAFLEX, PUBLIC_MASKED, PUBLIC_NESTED)
