"""Names that came with BEiT and DeiT III: gamma_1 and gamma_2, biases of queries and values apart.

RoPE-ViT's authors name theirs as DeiT III's do, SimMIM's as BEiT's; timm's Eva and Beit keep these names.
EVA-02 and Sapiens 2 have projections of queries, keys and values apart, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_pytorch.layers.attention import QueryValueBias
from vit_pytorch.layers.rotary import RotaryPositions
from vit_pytorch.pretrained.rules import Format, Rule, Transform, stack

BLOCK = "blocks.{i}"
BRANCH = f"{BLOCK}.attention"
TABLE = "relative_position_bias_table"


def _without_keys(tensor: Tensor, attention: Any) -> Sequence[Tensor]:
    query, key, value = tensor.chunk(3)
    if isinstance(attention.position, RotaryPositions) and key.any():
        raise ValueError("the format has no place for biases of keys, which rotations make count")
    return query, value


# Keys have no bias: without rotations it would add the same to all scores of a query.
NO_KEY_BIAS = Transform(
    lambda parts, module: torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]), _without_keys
)
# The numbers of pairs with prefix tokens are the last three rows of one table.
APART = Transform(
    lambda parts, module: (parts[0][:-3], parts[0][-3:]), lambda tensors, module: (torch.cat(tensors),)
)
# Heads may share keys and values, which are fewer channels then.
SEPARATE = Transform(
    lambda parts, attention: torch.cat(list(parts)),
    lambda tensor, attention: tensor.split(
        [heads * attention.dim_head for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
    ),
)
# Beside the frequencies stand the columns and the rows of the patches, which the grid tells. A model that
# does not rotate has no place for them, which loading says.
FREQS = Transform(
    lambda parts, rotary: parts[0] if rotary is None else parts[0].unflatten(2, rotary.freqs.shape[2:]),
    lambda tensor, rotary: (tensor.flatten(2), *rotary.places.T.to(tensor)),
)
QUERY_VALUE = tuple(
    Rule(f"{BRANCH}.qv_bias.{part}", f"blocks.{{i}}.attn.{part[0]}_bias") for part in ("query", "value")
)
SCALES = (
    Rule(f"{BLOCK}.scale1.gamma", "blocks.{i}.gamma_1"),
    Rule(f"{BLOCK}.scale2.gamma", "blocks.{i}.gamma_2"),
)


def _separate(names: str, parameter: str) -> Rule:
    """Return the rule for projections apart.

    Args:
        names: their names of the three, with `{x}` for what differs.
        parameter: `weight`, `bias` or `{p}`.
    """
    theirs = tuple(names.replace("{x}", x) + f".{parameter}" for x in "qkv")
    return Rule(f"{BRANCH}.to_qkv.{parameter}", theirs, SEPARATE)


@dataclass(frozen=True, kw_only=True)
class BiasesApart(Format):
    """A layout with biases of queries and values, for models that have three biases, or these two.

    Args:
        query_value: the rules for a model that has these two.
    """

    query_value: tuple[Rule, ...] = QUERY_VALUE

    def read(self, state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
        """Translate a state dict to our names; see `Format.read`."""
        return Format.read(self._for(model), state, model)

    def write(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Translate our state dict to this format; see `Format.write`."""
        return Format.write(self._for(model), state, model)

    def _for(self, model: nn.Module) -> Format:
        if any(isinstance(part, QueryValueBias) for part in model.modules()):
            return replace(self, rules=(*self.query_value, *self.rules))
        return self


def formats_beside(timm: Format) -> tuple[Format, ...]:
    """Return the formats whose other names are those of timm's plain ViT."""
    beit = BiasesApart(
        name="BEiT",
        marks=("blocks.0.attn.q_bias",),
        unused=(
            *timm.unused,
            "{name}relative_position_index",
            # SimMIM's decoder.
            "/decoder.{name}",
        ),
        rules=(
            Rule(f"{BRANCH}.to_qkv.bias", tuple(f"blocks.{{i}}.attn.{x}_bias" for x in "qv"), NO_KEY_BIAS),
            Rule(("relative.patches.table", "relative.prefix"), f"rel_pos_bias.{TABLE}", APART),
            Rule(
                (f"{BRANCH}.position.bias.patches.table", f"{BRANCH}.position.bias.prefix"),
                f"blocks.{{i}}.attn.{TABLE}",
                APART,
            ),
            *SCALES,
            *timm.rules,
        ),
    )
    hidden = f"{BLOCK}.feedforward.to_hidden.{{p}}"
    gated = Rule(hidden, tuple(f"blocks.{{i}}.mlp.fc1_{x}.{{p}}" for x in "gx"), stack(2))
    sub_norm, out = f"{BLOCK}.feedforward.sub_norm.{{p}}", f"{BLOCK}.feedforward.to_out.{{p}}"
    biases = ("blocks.{i}.attn.q_proj.bias", "blocks.{i}.attn.v_proj.bias")
    # Of the small models; the larger ones have projections apart.
    authors = replace(
        beit,
        name="EVA-02, fused",
        marks=("blocks.0.mlp.w12.weight",),
        unused=(*beit.unused, "rope.{name}", "blocks.{i}.attn.rope.{name}", "lm_head.{p}"),
        rules=(
            Rule(hidden, "blocks.{i}.mlp.w12.{p}"),
            Rule(out, "blocks.{i}.mlp.w3.{p}"),
            *beit.rules,
        ),
    )
    return (
        replace(
            authors,
            name="EVA-02",
            marks=("blocks.0.mlp.w1.weight",),
            rules=(
                _separate("blocks.{i}.attn.{x}_proj", "weight"),
                Rule(f"{BRANCH}.sub_norm.{{p}}", "blocks.{i}.attn.inner_attn_ln.{p}"),
                Rule(hidden, ("blocks.{i}.mlp.w1.{p}", "blocks.{i}.mlp.w2.{p}"), stack(2)),
                Rule(sub_norm, "blocks.{i}.mlp.ffn_ln.{p}"),
                *authors.rules,
            ),
        ),
        authors,
        replace(
            beit,
            name="timm Eva, grouped queries",
            marks=("blocks.0.attn.k_proj.bias",),
            rules=(_separate("blocks.{i}.attn.{x}_proj", "{p}"), *beit.rules),
        ),
        replace(
            beit,
            name="timm Eva, projections apart",
            marks=("blocks.0.attn.q_proj.weight",),
            query_value=tuple(
                Rule(rule.ours, theirs) for rule, theirs in zip(QUERY_VALUE, biases, strict=True)
            ),
            rules=(
                _separate("blocks.{i}.attn.{x}_proj", "weight"),
                Rule(f"{BRANCH}.to_qkv.bias", biases, NO_KEY_BIAS),
                Rule(f"{BRANCH}.sub_norm.{{p}}", "blocks.{i}.attn.norm.{p}"),
                Rule(sub_norm, "blocks.{i}.mlp.norm.{p}"),
                gated,
                *beit.rules,
            ),
        ),
        replace(
            beit,
            name="Sapiens 2",
            marks=("blocks.0.attn.wq.weight",),
            unused=(*beit.unused, "rope_embed.{name}"),
            rules=(
                Rule("prefix.registers", "storage_tokens"),
                Rule("patch_embed.proj.{p}", "patch_embed.projection.{p}"),
                _separate("blocks.{i}.attn.w{x}", "{p}"),
                Rule(f"{BLOCK}.scale1.gamma", "blocks.{i}.attn.gamma.weight"),
                Rule(f"{BLOCK}.norm1.{{p}}", "blocks.{i}.ln1.{p}"),
                Rule(f"{BLOCK}.norm2.{{p}}", "blocks.{i}.ln2.{p}"),
                Rule(hidden, "blocks.{i}.ffn.w12.{p}"),
                Rule(out, "blocks.{i}.ffn.w3.{p}"),
                Rule("norm.{p}", "ln1.{p}"),
                *beit.rules,
            ),
        ),
        replace(
            beit, name="timm Eva, SwiGLU", marks=("blocks.0.mlp.fc1_g.weight",), rules=(gated, *beit.rules)
        ),
        beit,
        Format(
            name="RoPE-ViT",
            marks=("freqs_t_x",),
            rules=(
                Rule("rotary.freqs", ("freqs", "freqs_t_x", "freqs_t_y"), FREQS),
                *SCALES,
                *timm.rules,
            ),
        ),
        Format(
            name="timm Eva",
            marks=("blocks.0.gamma_1",),
            unused=timm.unused,
            rules=(Rule("rotary.freqs", "rope.freqs"), *SCALES, *timm.rules),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class TransformersBeit(BiasesApart):
    """transformers' layout of BEiT and Data2Vec, which differs from its ViT's by what is missing."""

    def strip_prefix(self, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return the state dict under bare names; None where keys have biases; see `Format.strip_prefix`."""
        bare = super().strip_prefix(state)
        return None if bare is None or any(name in bare for name in KEY_BIASES) else bare


# By its names in files, and in memory since release 5.
KEY_BIASES = ("encoder.layer.0.attention.attention.key.bias", "layers.0.attention.k_proj.bias")


def transformers_beside(vit: Format) -> TransformersBeit:
    """Return the format of transformers' BEiT, whose other names are those of its plain ViT."""
    table, layers = f"relative_position_bias.{TABLE}", ("encoder.layer.{i}", "layers.{i}")
    attention = "encoder.layer.{i}.attention.attention"
    biases = [
        (f"{attention}.query.bias", f"{attention}.value.bias"),
        ("layers.{i}.attention.q_proj.bias", "layers.{i}.attention.v_proj.bias"),
    ]
    return TransformersBeit(
        name="transformers BEiT",
        marks=tuple(query.format(i=0) for query, _ in biases),
        prefix="beit.",
        unused=(*vit.unused, "{name}relative_position_index", "/lm_head.{p}"),
        query_value=tuple(
            Rule(rule.ours, theirs) for pair in biases for rule, theirs in zip(QUERY_VALUE, pair, strict=True)
        ),
        rules=(
            *(Rule(f"{BRANCH}.to_qkv.bias", pair, NO_KEY_BIAS) for pair in biases),
            Rule(
                f"{BRANCH}.to_qkv.weight",
                tuple(f"{attention}.{x}.weight" for x in ("query", "key", "value")),
                stack(3),
            ),
            *(
                Rule(("relative.patches.table", "relative.prefix"), theirs, APART)
                for theirs in (f"encoder.{table}", f"shared_position_bias.{TABLE}")
            ),
            *(
                Rule(
                    (f"{BRANCH}.position.bias.patches.table", f"{BRANCH}.position.bias.prefix"), theirs, APART
                )
                for theirs in (f"{attention}.{table}", f"layers.{{i}}.{table}")
            ),
            *(
                Rule(f"{BLOCK}.scale{number}.gamma", f"{layer}.lambda_{number}")
                for layer in layers
                for number in (1, 2)
            ),
            Rule("fc_norm.{p}", "pooler.layernorm.{p}"),
            *vit.rules,
        ),
    )
