"""Checkpoints of the plain ViT: ViT and SimpleViT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from vit_pytorch.layers.rotary import NormalizedAxialRotary, NormalizedRotary
from vit_pytorch.pretrained.rules import Format, Rule, Transform, own_format, stack
from vit_pytorch.pretrained.tables import beit, language_towers, parallel_branches, towers
from vit_pytorch.pretrained.tables.blocks import timm_block

BLOCK = "blocks.{i}"
QKV = f"{BLOCK}.attention.to_qkv"
OUT = f"{BLOCK}.attention.to_out"
HIDDEN = f"{BLOCK}.feedforward.to_hidden"
CONTRACT = f"{BLOCK}.feedforward.to_out"
MAP = "attention_pool"
# Networks of relative positions, of each layer and of all.
LOG_BIASES = (
    (f"{BLOCK}.attention.position.bias.patches", f"{BLOCK}.attn.rel_pos"),
    ("relative.patches", "shared_rel_pos"),
)

# A projection of flattened patches (row, column, channel) as the convolution that it equals.
PATCHES = Transform(
    lambda parts, embed: parts[0].unflatten(1, (*embed.grid.patch, -1)).movedim(-1, 1),
    lambda tensor, embed: (tensor.movedim(1, -1).flatten(1),),
)
# Tokens without the axis of the batch; releases differ, so one that has it passes.
ROWS = Transform(
    lambda parts, module: parts[0] if parts[0].ndim == 3 else parts[0].unsqueeze(0),
    lambda tensor, module: (tensor.squeeze(0),),
)
# Flax: kernels are (in, out), convolutions (height, width, in, out), heads an axis of their own.
KERNEL = Transform(
    lambda parts, module: parts[0].transpose(0, 1), lambda tensor, module: (tensor.transpose(0, 1),)
)
CONV = Transform(
    lambda parts, module: parts[0].permute(3, 2, 0, 1), lambda tensor, module: (tensor.permute(2, 3, 1, 0),)
)
# Flax: a norm of a map has the map's axes.
CHANNELS = Transform(
    lambda parts, module: parts[0].flatten(), lambda tensor, module: (tensor[None, None, None],)
)
OUT_KERNEL = Transform(
    lambda parts, module: parts[0].flatten(0, 1).mT,
    lambda tensor, attention: (tensor.mT.unflatten(0, (attention.heads, -1)),),
)


def _in_kernels(count: int) -> Transform:
    def write(tensor: Tensor, attention: Any) -> Sequence[Tensor]:
        return [part.mT.unflatten(1, (attention.heads, -1)) for part in tensor.chunk(count)]

    return Transform(lambda parts, module: torch.cat([part.flatten(1).mT for part in parts]), write)


def _in_biases(count: int) -> Transform:
    def write(tensor: Tensor, attention: Any) -> Sequence[Tensor]:
        return [part.unflatten(0, (attention.heads, -1)) for part in tensor.chunk(count)]

    return Transform(lambda parts, module: torch.cat([part.flatten() for part in parts]), write)


OURS = own_format("blocks.0.attention.to_qkv.weight")

TIMM = Format(
    name="timm",
    marks=("blocks.0.attn.qkv.weight",),
    # The authors' masked autoencoder is such a model, and a decoder; DINO's student and teacher are
    # `backbone` and a projection `head`.
    unused=("mask_token", "decoder_{name}", "/head.{name}"),
    fixed_positions=True,
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule("prefix.registers", "reg_token"),
        Rule("prefix.registers", "register_tokens"),
        Rule("positions.table", "pos_embed"),
        Rule("patch_embed.proj.{p}", "patch_embed.proj.{p}"),
        # The network in front of a hybrid; the names of ours are timm's.
        Rule("patch_embed.backbone.{name}", "patch_embed.backbone.{name}"),
        Rule("patch_embed.norm_out.{p}", "patch_embed.norm.{p}"),
        Rule("pre_norm.{p}", "norm_pre.{p}"),
        *timm_block(BLOCK, "blocks.{i}"),
        Rule(f"{BLOCK}.attention.q_norm.{{p}}", "blocks.{i}.attn.q_norm.{p}"),
        Rule(f"{BLOCK}.attention.k_norm.{{p}}", "blocks.{i}.attn.k_norm.{p}"),
        Rule(f"{BLOCK}.attention.sub_norm.{{p}}", "blocks.{i}.attn.norm.{p}"),
        Rule(f"{BLOCK}.feedforward.sub_norm.{{p}}", "blocks.{i}.mlp.norm.{p}"),
        Rule(f"{BLOCK}.attention.kernel.sub_norm.weight", "blocks.{i}.attn.sub_norm.weight"),
        Rule(f"{BLOCK}.attention.kernel.lambda_{{name}}", "blocks.{i}.attn.lambda_{name}"),
        *(
            Rule(f"{ours}.network.{index}.{{p}}", f"{theirs}.mlp.fc{1 + index // 2}.{{p}}")
            for ours, theirs in LOG_BIASES
            for index in (0, 2)
        ),
        Rule(f"{BLOCK}.scale1.gamma", "blocks.{i}.ls1.gamma"),
        Rule(f"{BLOCK}.scale2.gamma", "blocks.{i}.ls2.gamma"),
        # DeiT's own program names the factors so.
        Rule(f"{BLOCK}.scale1.gamma", "blocks.{i}.gamma_1"),
        Rule(f"{BLOCK}.scale2.gamma", "blocks.{i}.gamma_2"),
        Rule("norm.{p}", "norm.{p}"),
        Rule("fc_norm.{p}", "fc_norm.{p}"),
        Rule(f"{MAP}.query", "attn_pool.latent"),
        Rule(f"{MAP}.to_q.{{p}}", "attn_pool.q.{p}"),
        Rule(f"{MAP}.to_kv.{{p}}", "attn_pool.kv.{p}"),
        Rule(f"{MAP}.to_out.{{p}}", "attn_pool.proj.{p}"),
        Rule(f"{MAP}.norm.{{p}}", "attn_pool.norm.{p}"),
        Rule(f"{MAP}.mlp.to_hidden.{{p}}", "attn_pool.mlp.fc1.{p}"),
        Rule(f"{MAP}.mlp.to_out.{{p}}", "attn_pool.mlp.fc2.{p}"),
        Rule("head.{p}", "head.{p}"),
    ),
)


def _without_bias(tensors: Sequence[Tensor], module: Any) -> Sequence[Tensor]:
    weight, bias = tensors
    if bias.any():
        raise ValueError("the format has a classifier without bias, and the model's is not zero")
    return (weight.T,)


# MobileCLIP's image encoder, whose projection to the dimensions of texts is the classifier.
MOBILE_CLIP = Format(
    name="MobileCLIP",
    marks=("patch_emb.0.block.conv.weight",),
    prefix="image_encoder.model.",
    # the text's encoder
    unused=("/{name}",),
    rules=(
        Rule("prefix.class_token", "cls_token"),
        Rule(
            "positions.table",
            "pos_embed.pos_embed.pos_embed",
            Transform(lambda parts, module: parts[0].squeeze(0), lambda table, module: (table[None],)),
        ),
        Rule("patch_embed.backbone.{i}.conv.{p}", "patch_emb.{i}.block.conv.{p}"),
        Rule("patch_embed.backbone.{i}.bn.{name}", "patch_emb.{i}.block.norm.{name}"),
        Rule(f"{BLOCK}.norm1.{{p}}", "transformer.{i}.pre_norm_mha.0.{p}"),
        Rule(f"{QKV}.{{p}}", "transformer.{i}.pre_norm_mha.1.qkv_proj.{p}"),
        Rule(f"{OUT}.{{p}}", "transformer.{i}.pre_norm_mha.1.out_proj.{p}"),
        Rule(f"{BLOCK}.norm2.{{p}}", "transformer.{i}.pre_norm_ffn.0.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "transformer.{i}.pre_norm_ffn.1.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "transformer.{i}.pre_norm_ffn.4.{p}"),
        Rule("norm.{p}", "post_transformer_norm.{p}"),
        Rule(
            ("head.weight", "head.bias"),
            "classifier.proj",
            Transform(
                lambda parts, module: (parts[0].T, parts[0].new_zeros(parts[0].shape[1])), _without_bias
            ),
        ),
    ),
)

_LAYER = "encoder.layers.encoder_layer_{i}"
TORCHVISION = Format(
    name="torchvision",
    marks=("encoder.layers.encoder_layer_0.self_attention.in_proj_weight",),
    rules=(
        Rule("prefix.class_token", "class_token"),
        Rule("positions.table", "encoder.pos_embedding"),
        Rule("patch_embed.proj.{p}", "conv_proj.{p}"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{_LAYER}.ln_1.{{p}}"),
        Rule(f"{QKV}.{{p}}", f"{_LAYER}.self_attention.in_proj_{{p}}"),
        Rule(f"{OUT}.{{p}}", f"{_LAYER}.self_attention.out_proj.{{p}}"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{_LAYER}.ln_2.{{p}}"),
        Rule(f"{HIDDEN}.{{p}}", f"{_LAYER}.mlp.0.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{_LAYER}.mlp.3.{{p}}"),
        # The published files have the names of the first release.
        Rule(f"{HIDDEN}.{{p}}", f"{_LAYER}.mlp.linear_1.{{p}}"),
        Rule(f"{CONTRACT}.{{p}}", f"{_LAYER}.mlp.linear_2.{{p}}"),
        Rule("norm.{p}", "encoder.ln.{p}"),
        Rule("pre_logits.0.{p}", "heads.pre_logits.{p}"),
        Rule("head.{p}", "heads.head.{p}"),
    ),
)

_ATTENTION = "encoder.layer.{i}.attention.attention"
_EMBEDDINGS = (
    Rule("prefix.class_token", "embeddings.cls_token"),
    Rule("prefix.registers", "embeddings.register_tokens"),
    Rule("positions.table", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    Rule("norm.{p}", "layernorm.{p}"),
    Rule("head.{p}", "/classifier.{p}"),
)
TRANSFORMERS = Format(
    name="transformers",
    marks=("encoder.layer.0.layernorm_before.weight", "layers.0.layernorm_before.weight"),
    prefix="vit.",
    # The decoder is that of a model for masked images.
    unused=("embeddings.mask_token", "pooler.dense.{p}", "/decoder.{name}"),
    rules=(
        *_EMBEDDINGS,
        # Release 5 writes the layers of some classifiers (MSN) without the prefix that the rest has.
        *(Rule(rule.ours, f"vit.{rule.theirs}") for rule in _EMBEDDINGS[:-1]),
        Rule("head.{p}", "classifier.{p}"),
        # DeiT's second token plays no role after the blocks where a classifier has no teacher.
        Rule("prefix.registers", "embeddings.distillation_token"),
        Rule(f"{BLOCK}.norm1.{{p}}", "encoder.layer.{i}.layernorm_before.{p}"),
        Rule(f"{QKV}.{{p}}", tuple(f"{_ATTENTION}.{x}.{{p}}" for x in ("query", "key", "value")), stack(3)),
        Rule(f"{OUT}.{{p}}", "encoder.layer.{i}.attention.output.dense.{p}"),
        Rule(f"{BLOCK}.norm2.{{p}}", "encoder.layer.{i}.layernorm_after.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "encoder.layer.{i}.intermediate.dense.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "encoder.layer.{i}.output.dense.{p}"),
        # Files keep the names above; a model in memory has these since release 5.
        Rule(f"{BLOCK}.norm1.{{p}}", "layers.{i}.layernorm_before.{p}"),
        Rule(f"{QKV}.{{p}}", tuple(f"layers.{{i}}.attention.{x}_proj.{{p}}" for x in "qkv"), stack(3)),
        Rule(f"{OUT}.{{p}}", "layers.{i}.attention.o_proj.{p}"),
        Rule(f"{BLOCK}.norm2.{{p}}", "layers.{i}.layernorm_after.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "layers.{i}.mlp.fc1.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "layers.{i}.mlp.fc2.{p}"),
    ),
)
TRANSFORMERS_BEIT = beit.transformers_beside(TRANSFORMERS)
TRANSFORMERS_DINOV2 = Format(
    name="transformers DINOv2",
    marks=("encoder.layer.0.layer_scale1.lambda1",),
    prefix="dinov2_with_registers.",
    unused=("embeddings.mask_token",),
    rules=(
        *_EMBEDDINGS,
        Rule(f"{BLOCK}.norm1.{{p}}", "encoder.layer.{i}.norm1.{p}"),
        Rule(f"{QKV}.{{p}}", tuple(f"{_ATTENTION}.{x}.{{p}}" for x in ("query", "key", "value")), stack(3)),
        Rule(f"{QKV}.{{p}}", tuple(f"encoder.layer.{{i}}.attention.{x}_proj.{{p}}" for x in "qkv"), stack(3)),
        Rule(f"{OUT}.{{p}}", "encoder.layer.{i}.attention.output.dense.{p}"),
        Rule(f"{OUT}.{{p}}", "encoder.layer.{i}.attention.o_proj.{p}"),
        Rule(f"{BLOCK}.scale1.gamma", "encoder.layer.{i}.layer_scale1.lambda1"),
        Rule(f"{BLOCK}.norm2.{{p}}", "encoder.layer.{i}.norm2.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "encoder.layer.{i}.mlp.fc1.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "encoder.layer.{i}.mlp.fc2.{p}"),
        Rule(f"{BLOCK}.scale2.gamma", "encoder.layer.{i}.layer_scale2.lambda1"),
    ),
)
TRANSFORMERS_DINOV2_SWIGLU = replace(
    TRANSFORMERS_DINOV2,
    name="transformers DINOv2, SwiGLU",
    marks=("encoder.layer.0.mlp.weights_in.weight", "encoder.layer.0.mlp.gate_proj.weight"),
    prefix="dinov2.",
    rules=(
        Rule(f"{HIDDEN}.{{p}}", "encoder.layer.{i}.mlp.weights_in.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "encoder.layer.{i}.mlp.weights_out.{p}"),
        # In memory, since release 5.
        Rule(
            f"{HIDDEN}.{{p}}",
            tuple(f"encoder.layer.{{i}}.mlp.{x}_proj.{{p}}" for x in ("gate", "up")),
            stack(2),
        ),
        Rule(f"{CONTRACT}.{{p}}", "encoder.layer.{i}.mlp.down_proj.{p}"),
        *TRANSFORMERS_DINOV2.rules,
    ),
)


def _dinov3(layer: str) -> beit.BiasesApart:
    """The layout of transformers' DINOv3, in which a file may have another name before its layers."""
    attention = f"{layer}.attention"
    return beit.BiasesApart(
        name="transformers DINOv3",
        marks=(f"{layer.format(i=0)}.mlp.up_proj.weight",),
        unused=("embeddings.mask_token",),
        rotary=(NormalizedAxialRotary, NormalizedRotary.kind),
        query_value=tuple(
            Rule(f"{BLOCK}.attention.qv_bias.{part}", f"{attention}.{part[0]}_proj.bias")
            for part in ("query", "value")
        ),
        rules=(
            Rule("patch_embed.proj.{p}", "embeddings.patch_embeddings.{p}"),
            Rule("norm.{p}", "norm.{p}"),
            *_EMBEDDINGS,
            Rule(f"{BLOCK}.norm1.{{p}}", f"{layer}.norm1.{{p}}"),
            Rule(f"{QKV}.weight", tuple(f"{attention}.{x}_proj.weight" for x in "qkv"), stack(3)),
            Rule(f"{QKV}.bias", tuple(f"{attention}.{x}_proj.bias" for x in "qv"), beit.NO_KEY_BIAS),
            Rule(f"{OUT}.{{p}}", f"{attention}.o_proj.{{p}}"),
            Rule(f"{BLOCK}.scale1.gamma", f"{layer}.layer_scale1.lambda1"),
            Rule(f"{BLOCK}.norm2.{{p}}", f"{layer}.norm2.{{p}}"),
            Rule(f"{HIDDEN}.{{p}}", f"{layer}.mlp.up_proj.{{p}}"),
            Rule(f"{CONTRACT}.{{p}}", f"{layer}.mlp.down_proj.{{p}}"),
            Rule(f"{BLOCK}.scale2.gamma", f"{layer}.layer_scale2.lambda1"),
        ),
    )


def _gated(plain: Format, layer: str) -> Format:
    """The same layout with gated feed-forwards."""
    halves = Rule(f"{HIDDEN}.{{p}}", tuple(f"{layer}.mlp.{x}_proj.{{p}}" for x in ("gate", "up")), stack(2))
    return replace(
        plain,
        name=f"{plain.name}, SwiGLU",
        marks=(f"{layer.format(i=0)}.mlp.gate_proj.weight",),
        rules=(halves, *plain.rules),
    )


# In memory, release 5 of transformers has another name before the layers than its files.
TRANSFORMERS_DINOV3 = tuple(
    layout
    for layer in ("model.layer.{i}", "layer.{i}")
    for layout in (_gated(_dinov3(layer), layer), _dinov3(layer))
)

_PUBLIC = (
    Rule("patch_embed.norm_in.{p}", "to_patch_embedding.1.{p}"),
    Rule("patch_embed.proj.weight", "to_patch_embedding.2.weight", PATCHES),
    Rule("patch_embed.proj.bias", "to_patch_embedding.2.bias"),
    Rule("patch_embed.norm_out.{p}", "to_patch_embedding.3.{p}"),
    Rule("prefix.class_token", "cls_token", ROWS),
    Rule("prefix.registers", "register_tokens", ROWS),
    Rule("positions.table", "pos_embedding", ROWS),
    Rule("norm.{p}", "transformer.norm.{p}"),
)
PUBLIC_VIT = Format(
    name="vit-pytorch ViT",
    marks=("transformer.layers.0.0.to_out.0.weight", "transformer.layers.0.1.net.4.weight"),
    rules=(
        *_PUBLIC,
        Rule(f"{BLOCK}.norm1.{{p}}", "transformer.layers.{i}.0.norm.{p}"),
        Rule(f"{QKV}.weight", "transformer.layers.{i}.0.to_qkv.weight"),
        Rule(f"{OUT}.{{p}}", "transformer.layers.{i}.0.to_out.0.{p}"),
        Rule(f"{BLOCK}.norm2.{{p}}", "transformer.layers.{i}.1.net.0.{p}"),
        Rule(f"{HIDDEN}.{{p}}", "transformer.layers.{i}.1.net.1.{p}"),
        Rule(f"{CONTRACT}.{{p}}", "transformer.layers.{i}.1.net.4.{p}"),
        Rule("head.{p}", "mlp_head.{p}"),
    ),
)


def public_simple_vit(
    name: str,
    *rules: Rule,
    attention: str = "transformer.layers.{i}.0",
    feedforward: str = "transformer.layers.{i}.1.net",
    unused: tuple[str, ...] = (),
) -> Format:
    """Return the layout of one of the public package's simplified ViTs.

    Args:
        rules: those of its own; they go before the common ones.
        attention: its name of the attention.
        feedforward: its name of the feed-forward.
    """
    return Format(
        name=f"vit-pytorch {name}",
        marks=(f"{attention}.to_out.weight".format(i=0),),
        unused=unused,
        rules=(
            *rules,
            *_PUBLIC,
            Rule(f"{BLOCK}.norm1.{{p}}", f"{attention}.norm.{{p}}"),
            Rule(f"{QKV}.weight", f"{attention}.to_qkv.weight"),
            Rule(f"{OUT}.weight", f"{attention}.to_out.weight"),
            Rule(f"{BLOCK}.norm2.{{p}}", f"{feedforward}.0.{{p}}"),
            Rule(f"{HIDDEN}.{{p}}", f"{feedforward}.1.{{p}}"),
            Rule(f"{CONTRACT}.{{p}}", f"{feedforward}.3.{{p}}"),
            Rule("head.{p}", "linear_head.{p}"),
        ),
    )


PUBLIC_SIMPLE_VIT = public_simple_vit("SimpleViT")


def _flax_dense(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"{ours}.weight", f"{theirs}/kernel", KERNEL), Rule(f"{ours}.bias", f"{theirs}/bias")


def _flax_norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"{ours}.weight", f"{theirs}/scale"), Rule(f"{ours}.bias", f"{theirs}/bias")


def _flax_heads(ours: str, theirs: str, names: tuple[str, ...]) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}.weight", tuple(f"{theirs}/{x}/kernel" for x in names), _in_kernels(len(names))),
        Rule(f"{ours}.bias", tuple(f"{theirs}/{x}/bias" for x in names), _in_biases(len(names))),
    )


def _flax_out(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"{ours}.weight", f"{theirs}/kernel", OUT_KERNEL), Rule(f"{ours}.bias", f"{theirs}/bias")


def _flax_group_norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}.weight", f"{theirs}/scale", CHANNELS),
        Rule(f"{ours}.bias", f"{theirs}/bias", CHANNELS),
    )


def _flax_resnet() -> tuple[Rule, ...]:
    """The network in front of a hybrid, whose stages and blocks Google counts from 1."""
    ours = "patch_embed.backbone"
    rules = [Rule(f"{ours}.stem.conv.weight", "conv_root/kernel", CONV)]
    rules += _flax_group_norm(f"{ours}.stem.norm", "gn_root")
    for stage, block in product(range(4), range(9)):
        unit, theirs = f"{ours}.stages.{stage}.blocks.{block}", f"block{stage + 1}/unit{block + 1}"
        for conv in (1, 2, 3):
            rules.append(Rule(f"{unit}.conv{conv}.weight", f"{theirs}/conv{conv}/kernel", CONV))
            rules += _flax_group_norm(f"{unit}.norm{conv}", f"{theirs}/gn{conv}")
        rules.append(Rule(f"{unit}.downsample.conv.weight", f"{theirs}/conv_proj/kernel", CONV))
        rules += _flax_group_norm(f"{unit}.downsample.norm", f"{theirs}/gn_proj")
    return tuple(rules)


def _flax(name: str, *, positions: str, attention: str, norm: str, mlp: str, prefix: str = "") -> Format:
    """The layouts of Google's two programs, which number their layers differently."""
    block = "Transformer/encoderblock_{i}"
    pool = "MAPHead_0"
    return Format(
        name=name,
        marks=(f"Transformer/encoderblock_0/{attention}/query/kernel",),
        prefix=prefix,
        rules=(
            Rule("prefix.class_token", "cls"),
            Rule("positions.table", positions),
            Rule("patch_embed.proj.weight", "embedding/kernel", CONV),
            Rule("patch_embed.proj.bias", "embedding/bias"),
            *_flax_norm(f"{BLOCK}.norm1", f"{block}/LayerNorm_0"),
            *_flax_heads(QKV, f"{block}/{attention}", ("query", "key", "value")),
            *_flax_out(OUT, f"{block}/{attention}/out"),
            *_flax_norm(f"{BLOCK}.norm2", f"{block}/{norm}"),
            *_flax_dense(HIDDEN, f"{block}/{mlp}/Dense_0"),
            *_flax_dense(CONTRACT, f"{block}/{mlp}/Dense_1"),
            *_flax_norm("norm", "Transformer/encoder_norm"),
            Rule(f"{MAP}.query", f"{pool}/probe"),
            *_flax_heads(f"{MAP}.to_q", f"{pool}/MultiHeadDotProductAttention_0", ("query",)),
            *_flax_heads(f"{MAP}.to_kv", f"{pool}/MultiHeadDotProductAttention_0", ("key", "value")),
            *_flax_out(f"{MAP}.to_out", f"{pool}/MultiHeadDotProductAttention_0/out"),
            *_flax_norm(f"{MAP}.norm", f"{pool}/LayerNorm_0"),
            *_flax_dense(f"{MAP}.mlp.to_hidden", f"{pool}/MlpBlock_0/Dense_0"),
            *_flax_dense(f"{MAP}.mlp.to_out", f"{pool}/MlpBlock_0/Dense_1"),
            *_flax_resnet(),
            *_flax_dense("pre_logits.0", "pre_logits"),
            *_flax_dense("head", "head"),
        ),
    )


VIT_JAX = _flax(
    "vit_jax",
    positions="Transformer/posembed_input/pos_embedding",
    attention="MultiHeadDotProductAttention_1",
    norm="LayerNorm_2",
    mlp="MlpBlock_3",
)
BIG_VISION = _flax(
    "big_vision",
    positions="pos_embedding",
    attention="MultiHeadDotProductAttention_0",
    norm="LayerNorm_1",
    mlp="MlpBlock_0",
    prefix="params/",
)

FORMATS = (
    OURS,
    *language_towers.FORMATS,
    *beit.formats_beside(TIMM),
    *parallel_branches.formats_beside(TIMM),
    TIMM,
    MOBILE_CLIP,
    TORCHVISION,
    TRANSFORMERS_BEIT,
    TRANSFORMERS,
    TRANSFORMERS_DINOV2_SWIGLU,
    TRANSFORMERS_DINOV2,
    *TRANSFORMERS_DINOV3,
    *towers.FORMATS,
    PUBLIC_VIT,
    PUBLIC_SIMPLE_VIT,
    VIT_JAX,
    BIG_VISION,
)
