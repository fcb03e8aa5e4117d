"""Value residual: every layer mixes the first layer's values into its own.

Z. Zhou, T. Wu, Z. Jiang, F. Obeid, Z. Lan 2024, arXiv:2410.17897 (ResFormer). What a token was at first stays
within reach of all layers, beside the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.options import Option, OptionLike, check_choice, read_option

Heads = Float[Tensor, "b h n e"]


class EvenMix(nn.Module):
    """Half of the first layer's values, half of a layer's own: V' = 0.5 V_1 + 0.5 V_n ("identity")."""

    def forward(self, values: Heads, first: Heads, x: Float[Tensor, "b n d"]) -> Heads:
        """Mix a layer's own values and the first layer's."""
        return torch.lerp(values, first, 0.5)


class LearnedMix(nn.Module):
    """V' = l_1 V_1 + l_2 V_n, of two numbers that are learned for each layer, 0.5 at first ("learnable")."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, values: Heads, first: Heads, x: Float[Tensor, "b n d"]) -> Heads:
        """Mix a layer's own values and the first layer's."""
        return self.weights[0] * first + self.weights[1] * values


class GatedMix(nn.Module):
    """V' = g V_1 + (1 - g) V_n, where g = sigmoid(W x + b) for each token and head ("gated").

    x is the normed token that the values are projected from. The paper has no such form; the public
    vit-pytorch package has it. W and b are zero at first, so that it starts as the even mix.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, heads)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, values: Heads, first: Heads, x: Float[Tensor, "b n d"]) -> Heads:
        """Mix a layer's own values and the first layer's."""
        share = self.gate(x).sigmoid().transpose(1, 2)[..., None]
        return values + share * (first - values)


@dataclass(frozen=True)
class ValueResidual(Option):
    """Option: layers mix the first layer's values into their own.

    Args:
        mix: "learnable" (two learned numbers), "identity" (evenly) or "gated" (by a gate for each token and
            head).
        layers: indices of the layers that do so, from 1 on; "last_third" for the last third of them; default
            all but the first.
    """

    kind: ClassVar[str] = "learnable"
    mix: str = "learnable"
    layers: Sequence[int] | str | None = None

    def build(self, *, dim: int, heads: int, depth: int) -> Callable[[int], nn.Module | None]:
        """Return what builds the mix of a layer from its index; None for a layer that keeps its own values.

        Raises:
            ValueError: if the mix is unknown, or there is no such layer after the first.
        """
        mixes: dict[str, Callable[[], nn.Module]] = {
            "learnable": LearnedMix,
            "identity": EvenMix,
            "gated": partial(GatedMix, dim, heads),
        }
        check_choice("mix of the value residual", self.mix, mixes)
        if depth < 2:
            raise ValueError(f"a value residual needs a depth of at least 2, got {depth}")
        if self.layers == "last_third":
            layers: Sequence[int] = range(max(depth - ceil(depth / 3), 1), depth)
        elif self.layers is None:
            layers = range(1, depth)
        else:
            layers = [int(layer) for layer in self.layers]
            if not layers or not all(0 < layer < depth for layer in layers):
                raise ValueError(f"layers of a value residual must be 1 to {depth - 1}, got {layers}")
        return lambda layer: mixes[self.mix]() if layer in layers else None


VALUE_RESIDUALS = {
    "learnable": ValueResidual(),
    "identity": ValueResidual("identity"),
    "gated": ValueResidual("gated"),
    "sparse": ValueResidual("identity", "last_third"),
}


def read_value_residual(value: bool | OptionLike | Sequence[int] | None) -> ValueResidual | None:
    """Return the value residual that an argument stands for; None for none.

    True is "learnable"; indices of layers mix evenly.
    """
    if value is None or value is False:
        return None
    if value is True:
        return VALUE_RESIDUALS["learnable"]
    if isinstance(value, (str, Option, Mapping)):
        return read_option("value_residual", value, VALUE_RESIDUALS)
    return ValueResidual("identity", tuple(value))
