"""Checkpoints of vision towers beside texts, which are left out.

transformers' of CLIP and SigLIP, and OpenAI's of CLIP, whose names the Perception Encoder's authors keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack

BLOCK = "blocks.{i}"
THEIRS = "encoder.layers.{i}"
POOL = "attention_pool"

# Positions without the axis of the batch, and a class token that is a vector.
TABLE = Transform(lambda parts, module: parts[0].unsqueeze(0), lambda tensor, module: (tensor.squeeze(0),))
VECTOR = Transform(lambda parts, module: parts[0].view(1, 1, -1), lambda tensor, module: (tensor.flatten(),))
# One projection of theirs as ours of the query and ours of keys and values.
APART = Transform(
    lambda parts, pool: (parts[0][: len(parts[0]) // 3], parts[0][len(parts[0]) // 3 :]),
    lambda tensors, pool: (torch.cat(tensors),),
)


def _without_bias(tensors: Sequence[Tensor], head: Any) -> Sequence[Tensor]:
    weight, bias = tensors
    if bias.any():
        raise ValueError("the format has a projection without a bias, and the classifier's is not zero")
    return (weight.mT,)


# A projection without a bias, (in, out), as the classifier.
PROJECTION = Transform(
    lambda parts, head: (parts[0].mT, parts[0].new_zeros(parts[0].shape[1])), _without_bias
)
LINEAR = Transform(
    lambda parts, head: (parts[0], parts[0].new_zeros(len(parts[0]))),
    lambda tensors, head: (_without_bias(tensors, head)[0].mT,),
)
# SigLIP 2 projects flattened patches (row, column, channel), the first SigLIP convolves.
FLAT_OR_NOT = Transform(
    lambda parts, embed: (
        parts[0].unflatten(1, (*embed.grid.patch, -1)).movedim(-1, 1) if parts[0].ndim == 2 else parts[0]
    ),
    lambda tensor, embed: (tensor,),
)

_COMMON = (
    Rule("patch_embed.proj.weight", "embeddings.patch_embedding.weight", FLAT_OR_NOT),
    Rule("patch_embed.proj.bias", "embeddings.patch_embedding.bias"),
    Rule("positions.table", "embeddings.position_embedding.weight", TABLE),
    Rule(f"{BLOCK}.norm1.{{p}}", f"{THEIRS}.layer_norm1.{{p}}"),
    Rule(
        f"{BLOCK}.attention.to_qkv.{{p}}",
        tuple(f"{THEIRS}.self_attn.{x}_proj.{{p}}" for x in "qkv"),
        stack(3),
    ),
    Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{THEIRS}.self_attn.out_proj.{{p}}"),
    Rule(f"{BLOCK}.norm2.{{p}}", f"{THEIRS}.layer_norm2.{{p}}"),
    Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{THEIRS}.mlp.fc1.{{p}}"),
    Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{THEIRS}.mlp.fc2.{{p}}"),
    Rule("norm.{p}", "post_layernorm.{p}"),
)
_TEXTS = (
    "embeddings.position_ids",
    "/text_model.{name}",
    "/text_projection.{p}",
    "/logit_scale",
    "/logit_bias",
)
CLIP = Format(
    name="transformers CLIP",
    marks=("pre_layrnorm.weight",),
    prefix="vision_model.",
    unused=_TEXTS,
    rules=(
        *_COMMON,
        Rule("prefix.class_token", "embeddings.class_embedding", VECTOR),
        Rule("pre_norm.{p}", "pre_layrnorm.{p}"),
        Rule(("head.weight", "head.bias"), "/visual_projection.weight", LINEAR),
    ),
)


class SigLIPFormat(Format):
    """The layout of SigLIP, whose classifiers leave the attention pool out that stands beside them."""

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names.

        Raises:
            ValueError: where it is a classifier's, and the model classifies something else.
        """
        if "/classifier.weight" not in state:
            return super().read(state, model)
        pool = getattr(model, "pool", None)
        if pool != "mean":
            raise ValueError(
                f"a classifier of {self.name} takes the mean of the patches, not their attention pool: build "
                f"the model with pool='mean', class_token=False; got pool={pool!r}"
            )
        beside = [name for name in state if name.startswith("head.")]
        found, unused = super().read({k: v for k, v in state.items() if k not in beside}, model)
        return found, [*unused, *beside]


SIGLIP = SigLIPFormat(
    name="transformers SigLIP",
    # that of the classifiers that are written has no pool
    marks=("head.probe", "post_layernorm.weight"),
    prefix="vision_model.",
    unused=_TEXTS,
    rules=(
        *_COMMON,
        Rule("head.{p}", "/classifier.{p}"),
        Rule(f"{POOL}.query", "head.probe"),
        Rule((f"{POOL}.to_q.weight", f"{POOL}.to_kv.weight"), "head.attention.in_proj_weight", APART),
        Rule((f"{POOL}.to_q.bias", f"{POOL}.to_kv.bias"), "head.attention.in_proj_bias", APART),
        Rule(f"{POOL}.to_out.{{p}}", "head.attention.out_proj.{p}"),
        Rule(f"{POOL}.norm.{{p}}", "head.layernorm.{p}"),
        Rule(f"{POOL}.mlp.to_hidden.{{p}}", "head.mlp.fc1.{p}"),
        Rule(f"{POOL}.mlp.to_out.{{p}}", "head.mlp.fc2.{p}"),
    ),
)

_OPEN = "transformer.resblocks.{i}"
OPENAI_CLIP = Format(
    name="OpenAI CLIP",
    marks=("ln_pre.weight",),
    prefix="visual.",
    unused=(
        *("/transformer.{name}", "/text.{name}", "/token_embedding.weight", "/positional_embedding"),
        *("/ln_final.{p}", "/text_projection", "/logit_scale", "/input_resolution", "/context_length"),
        "/vocab_size",
    ),
    rules=(
        Rule("patch_embed.proj.{p}", "conv1.{p}"),
        Rule("prefix.class_token", "class_embedding", VECTOR),
        Rule("positions.table", "positional_embedding", TABLE),
        Rule("pre_norm.{p}", "ln_pre.{p}"),
        Rule(f"{BLOCK}.norm1.{{p}}", f"{_OPEN}.ln_1.{{p}}"),
        Rule(f"{BLOCK}.attention.to_qkv.{{p}}", f"{_OPEN}.attn.in_proj_{{p}}"),
        Rule(f"{BLOCK}.attention.to_out.{{p}}", f"{_OPEN}.attn.out_proj.{{p}}"),
        Rule(f"{BLOCK}.scale1.gamma", f"{_OPEN}.ls_1.gamma"),
        Rule(f"{BLOCK}.norm2.{{p}}", f"{_OPEN}.ln_2.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_hidden.{{p}}", f"{_OPEN}.mlp.c_fc.{{p}}"),
        Rule(f"{BLOCK}.feedforward.to_out.{{p}}", f"{_OPEN}.mlp.c_proj.{{p}}"),
        Rule(f"{BLOCK}.scale2.gamma", f"{_OPEN}.ls_2.gamma"),
        Rule("norm.{p}", "ln_post.{p}"),
        Rule(f"{POOL}.query", "attn_pool.probe"),
        Rule((f"{POOL}.to_q.weight", f"{POOL}.to_kv.weight"), "attn_pool.attn.in_proj_weight", APART),
        Rule((f"{POOL}.to_q.bias", f"{POOL}.to_kv.bias"), "attn_pool.attn.in_proj_bias", APART),
        Rule(f"{POOL}.to_out.{{p}}", "attn_pool.attn.out_proj.{p}"),
        Rule(f"{POOL}.norm.{{p}}", "attn_pool.layernorm.{p}"),
        Rule(f"{POOL}.mlp.to_hidden.{{p}}", "attn_pool.mlp.c_fc.{p}"),
        Rule(f"{POOL}.mlp.to_out.{{p}}", "attn_pool.mlp.c_proj.{p}"),
        Rule(("head.weight", "head.bias"), "proj", PROJECTION),
    ),
)
FORMATS = (CLIP, SIGLIP, OPENAI_CLIP)
