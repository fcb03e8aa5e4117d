"""Attention over space, over time, or over one of them in each head (ViViT, arXiv:2103.15691, section 3.3).

Tokens lie on a grid (time, height, width) in row-major order; each kind costs what its own axis needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention
from vit_pytorch.layers.blocks import DropPath, layer
from vit_pytorch.layers.tracing import is_tracing


class SpaceAttention(Attention):
    """Attention among the tokens of the same frames."""

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens of its place in time.

        Padding has places of its own, which only padding attends to: no mask is needed.

        Args:
            x: tokens of a grid (time, height, width).
            inputs: the grid.
        """
        return super().forward(x.reshape(-1, tokens_per_frame(inputs), x.shape[2])).reshape(x.shape)


class TimeAttention(Attention):
    """Attention among the tokens of the same place in all frames."""

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to those of its place in the frames that are no padding.

        Args:
            x: tokens of a grid (time, height, width).
            inputs: the grid, and the mask (b 1 1 n) of keys that are no padding; default all of them.
        """
        places = tokens_per_frame(inputs)
        tracks = x.unflatten(1, (-1, places)).transpose(1, 2).flatten(0, 1)
        tracks = super().forward(tracks, BlockInputs(mask=mask_per_track(inputs)))
        return tracks.unflatten(0, (-1, places)).transpose(1, 2).flatten(1, 2)


class SpaceAndTimeAttention(Attention):
    """Attention over space in half of the heads and over time in the others (ViViT, section 3.3, model 4).

    Args:
        dim: token dimension.
        heads: number of heads, even.
        dim_head: head dimension.
        qkv_bias: use biases for queries, keys and values.
        dropout: dropout on the output.
        kernel: builds the kernels that attend.

    Raises:
        ValueError: if the number of heads is odd.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        if heads % 2:
            raise ValueError(f"half of the heads attend over space and half over time; got {heads} heads")
        super().__init__(
            dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel
        )
        self.kernel_time = kernel()

    def attend(
        self,
        q: Float[Tensor, "b h n e"],
        k: Float[Tensor, "b h n e"],
        v: Float[Tensor, "b h n e"],
        inputs: BlockInputs,
    ) -> Float[Tensor, "b h n e"]:
        """Attend from each token to its frame, and to its place in the frames that are no padding."""
        half, places, batch = self.heads // 2, tokens_per_frame(inputs), q.shape[0]
        # (b h t p e), of which the kernels take four axes.
        parts = [part.unflatten(2, (-1, places)) for part in (q, k, v)]
        space = self.kernel(*(part[:, :half].transpose(1, 2).flatten(0, 1) for part in parts))
        tracks = (part[:, half:].permute(0, 3, 1, 2, 4).flatten(0, 1) for part in parts)
        time = self.kernel_time(*tracks, mask_per_track(inputs))
        space = space.unflatten(0, (batch, -1)).transpose(1, 2)
        time = time.unflatten(0, (batch, -1)).permute(0, 2, 3, 1, 4)
        return torch.cat([space, time], dim=1).flatten(2, 3)


class SpaceTimeBlock(nn.Module):
    """A block with attention over space, then over time, then the feed-forward (ViViT, section 3.3, model 3).

    Args:
        dim: token dimension.
        attention: mixes tokens of a frame.
        time: mixes tokens of a place.
        feedforward: transforms each token on its own.
        norm: builds a norm from a dimension.
        drop_path: probability of dropping each branch of a sample in training, in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        time: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attention = attention
        self.norm_time = norm(dim)
        self.time = time
        self.norm2 = norm(dim)
        self.feedforward = feedforward
        self.drop_path = DropPath(drop_path)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Apply the three residual branches."""
        x = x + self.drop_path(self.attention(self.norm1(x), inputs))
        x = x + self.drop_path(self.time(self.norm_time(x), inputs))
        return x + self.drop_path(self.feedforward(self.norm2(x)))


def hide_padding(
    tokens: Float[Tensor, "b n d"], inputs: BlockInputs, mask: Bool[Tensor, "b f"], patch: int
) -> tuple[Float[Tensor, "b n d"], BlockInputs]:
    """Return tokens of which those of padding are zero, and inputs by whose mask no token attends to them.

    Args:
        tokens: prefix tokens, then those of a grid (time, height, width).
        inputs: the grid and the number of prefix tokens.
        mask: true for frames, false for padding.
        patch: frames of a patch.

    Raises:
        ValueError: if the mask is not one of these frames, a patch is padding in part, or a video is nothing
            but padding.
    """
    assert inputs.grid is not None
    patches = mask.unflatten(1, (-1, patch))
    if not is_tracing(mask):
        want = (tokens.shape[0], inputs.grid[0] * patch)
        if mask.dtype != torch.bool or mask.shape != want:
            raise ValueError(
                f"expected a boolean mask of {want} (videos, frames), got {mask.dtype} of {tuple(mask.shape)}"
            )
        if not patches.all(dim=2).equal(patches.any(dim=2)):
            raise ValueError(f"the {patch} frames of a patch are masked together; the mask cuts a patch")
        if not mask.any(dim=1).all():
            raise ValueError("a video must have at least one frame, got a mask without any")
    seen = patches[:, :, 0].repeat_interleave(prod(inputs.grid[1:]), dim=1)
    seen = F.pad(seen, (inputs.num_prefix_tokens, 0), value=True)
    # Zero, since padding may hold anything, also what is not a number.
    return tokens.masked_fill(~seen[..., None], 0), replace(inputs, mask=seen[:, None, None])


def mean_of_frames(
    patches: Float[Tensor, "b n d"], mask: Bool[Tensor, "b f"] | None, patch: int
) -> Float[Tensor, "b d"]:
    """Return the mean of the tokens that are no padding.

    Args:
        patches: tokens in the order of time, as many for each patch of frames.
        mask: true for frames, false for padding; None for no padding.
        patch: frames of a patch.
    """
    if mask is None:
        return patches.mean(dim=1)
    seen = mask[:, ::patch]
    seen = seen.repeat_interleave(patches.shape[1] // seen.shape[1], dim=1)
    weights = seen / seen.sum(dim=1, keepdim=True)
    return (weights[:, None].to(patches) @ patches)[:, 0]


def tokens_per_frame(inputs: BlockInputs) -> int:
    """Return the number of tokens of a place in time."""
    assert inputs.grid is not None
    return prod(inputs.grid[1:])


def mask_in_time(inputs: BlockInputs) -> Bool[Tensor, "b 1 1 t"] | None:
    """Return the places in time that are no padding, as a mask of keys; None for all of them."""
    return None if inputs.mask is None else inputs.mask[..., :: tokens_per_frame(inputs)]


def mask_per_track(inputs: BlockInputs) -> Bool[Tensor, "tracks 1 1 t"] | None:
    """Return the mask of keys in time of each place in space."""
    mask = mask_in_time(inputs)
    return None if mask is None else mask.repeat_interleave(tokens_per_frame(inputs), dim=0)
