"""Checkpoints of ViTs on videos and volumes, of ViViT, VideoMAE and V-JEPA 2."""

from __future__ import annotations

from dataclasses import replace

from vit_pytorch.layers.rotary import TiledAxialRotary, TiledRotary
from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack
from vit_pytorch.pretrained.tables.beit import NO_KEY_BIAS
from vit_pytorch.pretrained.tables.vit import (
    BLOCK,
    OURS,
    PUBLIC_SIMPLE_VIT,
    PUBLIC_VIT,
    QKV,
    TIMM,
    TRANSFORMERS,
)

TOKEN = Transform(
    lambda parts, module: parts[0].reshape(1, 1, -1), lambda tensor, module: (tensor.flatten(),)
)

TRANSFORMERS_VIVIT = replace(
    TRANSFORMERS,
    marks=("encoder.layer.0.attention.attention.key.bias", "layers.0.layernorm_before.weight"),
    prefix="vivit.",
)
_ATTENTION = "encoder.layer.{i}.attention.attention"
TRANSFORMERS_VIDEOMAE = Format(
    name="transformers VideoMAE",
    marks=("encoder.layer.0.layernorm_before.weight",),
    prefix="videomae.",
    unused=TRANSFORMERS.unused,
    rules=(
        Rule(f"{QKV}.weight", tuple(f"{_ATTENTION}.{x}.weight" for x in ("query", "key", "value")), stack(3)),
        Rule(f"{QKV}.bias", (f"{_ATTENTION}.q_bias", f"{_ATTENTION}.v_bias"), NO_KEY_BIAS),
        # Files keep the names above; a model in memory has these since release 5.
        Rule(f"{QKV}.bias", (f"{_ATTENTION}.query.bias", f"{_ATTENTION}.value.bias"), NO_KEY_BIAS),
        Rule("fc_norm.{p}", "/fc_norm.{p}"),
        *TRANSFORMERS.rules,
    ),
)
VIDEOMAE = replace(
    TIMM,
    name="VideoMAE",
    fixed_positions=False,
    rules=(
        Rule(f"{QKV}.weight", "blocks.{i}.attn.qkv.weight"),
        Rule(f"{QKV}.bias", ("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"), NO_KEY_BIAS),
        *TIMM.rules,
    ),
)


def _vjepa2_layer(ours: str, theirs: str, names: tuple[str, ...], out: str, norms: str) -> tuple[Rule, ...]:
    """Return the rules of a block, whose attention and norms the encoder and the pool name differently."""
    return (
        Rule(f"{ours}.attention.to_qkv.{{p}}", tuple(f"{theirs}.{name}.{{p}}" for name in names), stack(3)),
        Rule(f"{ours}.attention.to_out.{{p}}", f"{theirs}.{out}.{{p}}"),
        Rule(f"{ours}.norm1.{{p}}", f"{theirs}.{norms}1.{{p}}"),
        Rule(f"{ours}.norm2.{{p}}", f"{theirs}.{norms}2.{{p}}"),
        Rule(f"{ours}.feedforward.to_hidden.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{ours}.feedforward.to_out.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
    )


_POOLER = "/pooler.cross_attention_layer"
TRANSFORMERS_VJEPA2 = Format(
    name="transformers V-JEPA 2",
    marks=("encoder.embeddings.patch_embeddings.proj.weight",),
    prefix="vjepa2.",
    # It learned to predict the encoder's output for hidden patches, and plays no role afterwards.
    unused=("predictor.{name}",),
    rotary=(TiledAxialRotary, TiledRotary.kind),
    rules=(
        Rule("patch_embed.proj.{p}", "encoder.embeddings.patch_embeddings.proj.{p}"),
        *_vjepa2_layer(
            BLOCK,
            "encoder.layer.{i}",
            ("attention.query", "attention.key", "attention.value"),
            "attention.proj",
            "norm",
        ),
        Rule("norm.{p}", "encoder.layernorm.{p}"),
        *_vjepa2_layer(
            "attention_pool.layers.{i}",
            "/pooler.self_attention_layers.{i}",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.out_proj",
            "layer_norm",
        ),
        Rule("attention_pool.query", "/pooler.query_tokens"),
        Rule("attention_pool.to_q.{p}", f"{_POOLER}.cross_attn.q_proj.{{p}}"),
        Rule(
            "attention_pool.to_kv.{p}", tuple(f"{_POOLER}.cross_attn.{x}_proj.{{p}}" for x in "kv"), stack(2)
        ),
        Rule("attention_pool.norm1.{p}", f"{_POOLER}.layer_norm1.{{p}}"),
        Rule("attention_pool.norm2.{p}", f"{_POOLER}.layer_norm2.{{p}}"),
        Rule("attention_pool.mlp.to_hidden.{p}", f"{_POOLER}.mlp.fc1.{{p}}"),
        Rule("attention_pool.mlp.to_out.{p}", f"{_POOLER}.mlp.fc2.{{p}}"),
        Rule("head.{p}", "/classifier.{p}"),
    ),
)
_NORM_IN_HEAD = (Rule("norm.{p}", "mlp_head.0.{p}"), Rule("head.{p}", "mlp_head.1.{p}"))
PUBLIC_VIT_3D = replace(PUBLIC_VIT, name="vit-pytorch 3D ViT", rules=(*_NORM_IN_HEAD, *PUBLIC_VIT.rules))
PUBLIC_VIT_1D = replace(
    PUBLIC_VIT_3D,
    name="vit-pytorch 1D ViT",
    rules=(Rule("prefix.class_token", "cls_token", TOKEN), *PUBLIC_VIT_3D.rules),
)

FORMATS = (
    OURS,
    TRANSFORMERS_VIVIT,
    TRANSFORMERS_VIDEOMAE,
    TRANSFORMERS_VJEPA2,
    VIDEOMAE,
    PUBLIC_VIT_3D,
    PUBLIC_SIMPLE_VIT,
)
