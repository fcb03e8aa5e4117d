"""Value residual: every layer mixes the first layer's values into its own.

Z. Zhou, T. Wu, Z. Jiang, F. Obeid, Z. Lan 2024, arXiv:2410.17897 (ResFormer). What a token was at first stays
within reach of all layers, beside the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers_v01.attention import Attention, MaskedAttention
from vit_pytorch.layers_v01.blocks import Encoder
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.relative import RelativeAttention
from vit_pytorch.layers_v01.rotary import RotaryAttention


class EvenMix(nn.Module):
    """Half of the first layer's values, half of a layer's own: V' = 0.5 V_1 + 0.5 V_n ("identity")."""

    def forward(
        self, values: Float[Tensor, "b h n e"], first: Float[Tensor, "b h n e"], x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b h n e"]:
        """Mix a layer's own values and the first layer's."""
        return torch.lerp(values, first, 0.5)


class LearnedMix(nn.Module):
    """V' = l_1 V_1 + l_2 V_n, of two numbers that are learned for each layer, 0.5 at first ("learnable")."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((2,), 0.5))

    def forward(
        self, values: Float[Tensor, "b h n e"], first: Float[Tensor, "b h n e"], x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b h n e"]:
        """Mix a layer's own values and the first layer's."""
        return self.weights[0] * first + self.weights[1] * values


class GatedMix(nn.Module):
    """V' = g V_1 + (1 - g) V_n, where g = sigmoid(W x + b) for each token and head ("gated").

    x is the normed token that the values are projected from. The paper has no such form; the public
    vit-pytorch package has it. W and b are zero at first, so that it starts as the even mix.

    Args:
        dim: width of a token.
        heads: number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, heads)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(
        self, values: Float[Tensor, "b h n e"], first: Float[Tensor, "b h n e"], x: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b h n e"]:
        """Mix a layer's own values and the first layer's."""
        share = self.gate(x).sigmoid().transpose(1, 2)[..., None]
        return values + share * (first - values)


def make_value_mix(
    kind: bool | str | Sequence[int], *, dim: int, heads: int, depth: int
) -> Callable[[int], nn.Module | None]:
    """Give what makes the mix of a layer from its index; None for a layer that keeps to its own values.

    Args:
        kind: "identity", "learnable" or "gated", in all layers but the first; True is "learnable". "sparse"
            for the last third of the layers, which mix evenly while the others do not; or their indices.
        dim: width of a token.
        heads: number of heads.
        depth: number of layers.

    Raises:
        ValueError: where there is no such kind, or no such layer behind the first.
    """
    if depth < 2:
        raise ValueError(f"value residuals go from the first layer to later ones; the depth is {depth}")
    make: Callable[[], nn.Module] = EvenMix
    if isinstance(kind, bool | str):
        name = "learnable" if kind is True else str(kind)
        mixes: dict[str, Callable[[], nn.Module]] = {
            "identity": EvenMix,
            "learnable": LearnedMix,
            "gated": partial(GatedMix, dim, heads),
            "sparse": EvenMix,
        }
        check_choice("value_residual", name, mixes)
        first = max(depth - ceil(depth / 3), 1) if name == "sparse" else 1
        make, layers = mixes[name], list(range(first, depth))
    else:
        layers = list(kind)
        if not layers or not all(0 < layer < depth for layer in layers):
            raise ValueError(f"layers that take the first one's values are 1 to {depth - 1}, got {layers}")
    return lambda layer: make() if layer in layers else None


class ValueResidualAttention(Attention):
    """Attention whose values are mixed with those of the first layer.

    Args:
        arguments: see `Attention`.
        mix: acts on the values, the first layer's values and the tokens; None for values as they are.
        options: see `Attention`.
    """

    def __init__(self, *arguments: Any, mix: nn.Module | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mix = mix

    def forward(
        self, x: Float[Tensor, "b n d"], first: Tensor | list[Tensor], *context: Any
    ) -> Float[Tensor, "b n d"]:
        """Let every token attend to all tokens of its sample.

        Args:
            x: tokens.
            first: the first layer's values (b h n e); in the first layer itself an empty list, to which it
                adds them.
            context: what `relate` is handed beside queries, keys and values.
        """
        q, k, v = self.project(x)
        if isinstance(first, list):
            first.append(v)
        elif self.mix is not None:
            v = self.mix(v, first, x)
        return self.merge(self.relate(q, k, v, *context))


class ValueMaskedAttention(ValueResidualAttention, MaskedAttention):
    """The same, handed a mask, too."""


class ValueRelativeAttention(ValueResidualAttention, RelativeAttention):
    """The same, with a bias of its own for each offset."""


class ValueRotaryAttention(ValueResidualAttention, RotaryAttention):
    """The same, its queries and keys turned by their places."""


WITH_VALUES: dict[type[Attention], type[ValueResidualAttention]] = {
    Attention: ValueResidualAttention,
    MaskedAttention: ValueMaskedAttention,
    RelativeAttention: ValueRelativeAttention,
    RotaryAttention: ValueRotaryAttention,
}


class ValueResidualEncoder(Encoder):
    """A stack of blocks, each of which is handed the first one's values in front of the other context."""

    def steps(self, x: Any, *context: Any) -> Iterator[Any]:
        """Give the tokens after every block in turn."""
        x, first = self.run(self._open, x, *context)
        yield x
        for block in self.blocks[1:]:
            x = self.run(block, x, first, *context)
            yield x

    def _open(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        values: list[Tensor] = []
        block: nn.Module = next(iter(self.blocks))
        x = block(x, values, *context)
        return x, values[0]
