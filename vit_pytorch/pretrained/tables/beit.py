"""Names that came with BEiT and DeiT III: gamma_1 and gamma_2, biases of queries and values apart.

RoPE-ViT's authors name theirs as DeiT III's do, SimMIM's as BEiT's; timm's Eva and Beit keep these names.
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
        raise ValueError("the format of BEiT has no place for biases of keys, which rotations make count")
    return query, value


# Keys have no bias: without rotations it would add the same to all scores of a query.
NO_KEY_BIAS = Transform(
    lambda parts, module: torch.cat([parts[0], torch.zeros_like(parts[0]), parts[1]]), _without_keys
)
# The numbers of pairs with prefix tokens are the last three rows of one table.
APART = Transform(
    lambda parts, module: (parts[0][:-3], parts[0][-3:]), lambda tensors, module: (torch.cat(tensors),)
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
    return (
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
