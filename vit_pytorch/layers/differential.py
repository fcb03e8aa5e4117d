"""Differential attention (T. Ye et al. 2024, arXiv:2410.05258): what two maps of a head differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import FusedAttention, MultiHead
from vit_pytorch.layers.blocks import fx_leaf
from vit_pytorch.layers.norm import RMSNorm


class DifferentialKernel(nn.Module):
    """Attention of half of each head's channels, less a learned multiple of that of the other half.

    Each head has two maps over values of its full dimension (equation 1); its output is normalised and scaled
    by 1 - lambda_init (equation 3). The recorded maps are those of twice as many heads: the first and the
    second of each head, one after the other.

    Args:
        dim_head: head dimension of the values, twice that of a map's queries and keys.
        layer: index of the layer, from 0, from which the multiple starts (section 2.1).
        scale: factor on the attention scores; default 1 / sqrt(dim_head / 2).

    Raises:
        ValueError: if `dim_head` is odd.
    """

    lambda_q1: nn.Parameter
    lambda_k1: nn.Parameter
    lambda_q2: nn.Parameter
    lambda_k2: nn.Parameter

    def __init__(
        self, dim_head: int, layer: int, *, dropout: float = 0.0, scale: float | None = None
    ) -> None:
        super().__init__()
        if dim_head % 2:
            raise ValueError(f"differential attention halves dim_head, which must be even, got {dim_head}")
        self.lambda_init = 0.8 - 0.6 * exp(-0.3 * layer)
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            setattr(self, name, nn.Parameter(torch.empty(dim_head // 2)))
            nn.init.normal_(getattr(self, name), std=0.1)
        self.kernel = FusedAttention(dropout, scale)
        self.sub_norm = RMSNorm(dim_head, eps=1e-5)

    def forward(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h m e"],
        v: Float[Tensor, "b h m e"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "b h n e"]:
        """Attend from each query to all keys, or to those that a mask leaves."""
        q, k = halve_heads(q), halve_heads(k)
        maps = self.kernel(q, k, v.repeat_interleave(2, dim=1), mask_of_halves(mask))
        first, second = maps.unflatten(1, (-1, 2)).unbind(2)
        first_factor = (self.lambda_q1 * self.lambda_k1).sum().exp()
        second_factor = (self.lambda_q2 * self.lambda_k2).sum().exp()
        mixed = first - (first_factor - second_factor + self.lambda_init) * second
        return self.sub_norm(mixed) * (1 - self.lambda_init)


def halve_heads(x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b k n f"]:
    """Return twice as many heads of half the channels, those of a head one after the other."""
    return x.unflatten(3, (2, -1)).transpose(2, 3).flatten(1, 2)


@fx_leaf
def mask_of_halves(mask: Tensor | None) -> Tensor | None:
    """Return a mask or bias for twice as many heads."""
    if mask is None or mask.ndim < 3 or mask.shape[-3] == 1:
        return mask
    return mask.repeat_interleave(2, dim=-3)


@dataclass(frozen=True)
class Differential(MultiHead):
    """Option: each head subtracts a second map of attention from the first (`DifferentialKernel`).

    Args:
        scale: factor on the attention scores; default 1 / sqrt(dim_head / 2).
    """

    kind: ClassVar[str] = "differential"

    def kernel(self, dropout: float, dim_head: int, layer: int) -> Callable[[], nn.Module]:
        """Return what builds the kernel of a layer."""
        return partial(DifferentialKernel, dim_head, layer, dropout=dropout, scale=self.scale)
