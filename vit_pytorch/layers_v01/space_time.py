"""Attention over space, over time, or over one of them in each head (ViViT, arXiv:2103.15691, section 3.3).

Tokens lie on a grid (time, height, width) in row-major order; each kind costs what its own axis needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block

Grid = Sequence[int]


class SpaceAttention(Attention):
    """Attention among the tokens of the same frames."""

    def forward(
        self, x: Float[Tensor, "b n d"], grid: Grid = (), seen: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Let every token attend to all tokens of its place in time.

        Args:
            x: tokens of a grid (time, height, width).
            grid: patches along each axis.
            seen: which places in time are no padding; padding has places of its own, so that none is asked.
        """
        return super().forward(x.reshape(-1, prod(grid[1:]), x.shape[2])).reshape(x.shape)


class TimeAttention(Attention):
    """Attention among the tokens of the same place in all frames."""

    def forward(
        self, x: Float[Tensor, "b n d"], grid: Grid = (), seen: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Let every token attend to those of its place in the frames that are no padding.

        Args:
            x: tokens of a grid (time, height, width).
            grid: patches along each axis.
            seen: which places in time are no padding; all of them unless told.
        """
        places = prod(grid[1:])
        tracks = x.unflatten(1, (-1, places)).transpose(1, 2).flatten(0, 1)
        q, k, v = self.project(tracks)
        tracks = self.merge(self.attend(q, k, v, _keys_in_time(seen, places)))
        return tracks.unflatten(0, (-1, places)).transpose(1, 2).flatten(1, 2)


class SpaceAndTimeAttention(Attention):
    """Attention over space in half of the heads and over time in the others (ViViT, section 3.3, model 4).

    Args:
        dim: width of a token.
        heads: number of heads, an even one.
        dim_head: width of a head.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        dropout: dropout on the output.
        attend: makes the kernels that mix the values.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attend: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        if heads % 2:
            raise ValueError(f"half of the heads attend over space and half over time; got {heads} heads")
        super().__init__(
            dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias, dropout=dropout, attend=attend
        )
        self.attend_time = attend()

    def forward(
        self, x: Float[Tensor, "b n d"], grid: Grid = (), seen: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Let every token attend to its frame and to its place in the frames that are no padding.

        Args:
            x: tokens of a grid (time, height, width).
            grid: patches along each axis.
            seen: which places in time are no padding; all of them unless told.
        """
        batch, half, places = x.shape[0], self.heads // 2, prod(grid[1:])
        # (b h t p e), of which the kernels take four axes.
        parts = [part.unflatten(2, (-1, places)) for part in self.project(x)]
        space = self.attend(*(part[:, :half].transpose(1, 2).flatten(0, 1) for part in parts))
        tracks = (part[:, half:].permute(0, 3, 1, 2, 4).flatten(0, 1) for part in parts)
        time = self.attend_time(*tracks, _keys_in_time(seen, places))
        space = space.unflatten(0, (batch, -1)).transpose(2, 3)
        time = time.unflatten(0, (batch, -1)).permute(0, 3, 1, 2, 4)
        mixed = torch.cat([space, time], dim=3).flatten(3)
        return self.dropout(self.to_out(mixed.flatten(1, 2)))


class SpaceTimeBlock(Block):
    """A block with attention over space, then over time, then the feed-forward (ViViT, section 3.3, model 3).

    Args:
        attention: mixes tokens of a frame.
        time: mixes tokens of a place.
        feedforward: transforms every token by itself.
    """

    def __init__(self, attention: nn.Module, time: nn.Module, feedforward: nn.Module) -> None:
        super().__init__(attention, feedforward)
        self.time = time

    def forward(self, x: Float[Tensor, "*s"], *context: Any) -> Float[Tensor, "*s"]:
        """Apply the three residual branches; both kinds of attention are handed the context."""
        return self.feedforward(self.time(self.attention(x, *context), *context))


def _keys_in_time(seen: Bool[Tensor, "b t"] | None, places: int) -> Bool[Tensor, "tracks 1 1 t"] | None:
    """Give each place's mask of keys in time."""
    return None if seen is None else seen.repeat_interleave(places, dim=0)[:, None, None]
