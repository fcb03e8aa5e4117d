"""Attention over space, over time, or over one of them in each head (ViViT, arXiv:2103.15691, section 3.3).

Tokens lie on a grid (time, height, width) in row-major order; each kind costs what its own axis needs.

Functions of masks take None for no padding, though callers ask: what FX traces may turn out to be None later.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, Queries
from vit_pytorch.layers.blocks import Block, fx_leaf, is_tracing, layer
from vit_pytorch.layers.patches import PatchGrid, mean_of_seen, seen_tokens


class SpaceAttention(Attention):
    """Attention among the tokens of the same frames."""

    def attend(self, q: Queries, k: Queries, v: Queries, inputs: BlockInputs) -> Queries:
        """Attend from each token of a grid (time, height, width) to all tokens of its place in time."""
        return attend_in_space(self.kernel, q, k, v, inputs)


class TimeAttention(Attention):
    """Attention among the tokens of the same place in all frames."""

    def attend(self, q: Queries, k: Queries, v: Queries, inputs: BlockInputs) -> Queries:
        """Attend from each token to those of its place in the frames that are no padding."""
        return attend_in_time(self.kernel, q, k, v, inputs)


class SpaceAndTimeAttention(Attention):
    """Attention over space in half of the heads and over time in the others (ViViT, section 3.3, model 4).

    Args:
        heads: number of heads, even.

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

    def attend(self, q: Queries, k: Queries, v: Queries, inputs: BlockInputs) -> Queries:
        """Attend from each token to its frame, and to its place in the frames that are no padding."""
        half = self.heads // 2
        space = attend_in_space(self.kernel, q[:, :half], k[:, :half], v[:, :half], inputs)
        time = attend_in_time(self.kernel_time, q[:, half:], k[:, half:], v[:, half:], inputs)
        return torch.cat([space, time], dim=1)


class SpaceTimeBlock(Block):
    """A block with attention over space, then over time, then the feed-forward (ViViT, section 3.3, model 3).

    Args:
        attention: mixes tokens of a frame.
        time: mixes tokens of a place.
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
        super().__init__(dim, attention, feedforward, norm=norm, drop_path=drop_path)
        self.norm_time = norm(dim)
        self.time = time

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Apply the three residual branches."""
        x = x + self.drop_path(self.attention(self.norm1(x), inputs))
        x = x + self.drop_path(self.time(self.norm_time(x), inputs))
        return x + self.drop_path(self.feedforward(self.norm2(x)))


def attend_in_space(kernel: nn.Module, q: Queries, k: Queries, v: Queries, inputs: BlockInputs) -> Queries:
    """Attend in each frame; no mask is needed, since padding has frames of its own."""
    frames = (x.unflatten(2, (-1, tokens_per_frame(inputs))).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    return kernel(*frames).unflatten(0, (q.shape[0], -1)).transpose(1, 2).flatten(2, 3)


def attend_in_time(kernel: nn.Module, q: Queries, k: Queries, v: Queries, inputs: BlockInputs) -> Queries:
    """Attend at each place of a frame along the frames, to those that the mask leaves."""
    places = tokens_per_frame(inputs)
    tracks = (x.unflatten(2, (-1, places)).permute(0, 3, 1, 2, 4).flatten(0, 1) for x in (q, k, v))
    x = kernel(*tracks, mask_in_time(inputs.mask, places, tracks=places))
    return x.unflatten(0, (q.shape[0], -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def tokens_per_frame(inputs: BlockInputs) -> int:
    """Return the number of tokens of a place in time."""
    assert inputs.grid is not None
    return prod(inputs.grid[1:])


@fx_leaf
def mask_in_time(
    mask: Bool[Tensor, "b 1 1 n"] | None, places: int, *, tracks: int = 1, prefix: int = 0
) -> Bool[Tensor, "m 1 1 t"] | None:
    """Return which frames are seen as keys, from which tokens are; None for all of them.

    Args:
        mask: true for tokens that are seen.
        places: tokens of a frame.
        tracks: number of times that each sample's mask is repeated.
    """
    if mask is None:
        return None
    return F.pad(mask[..., ::places].repeat_interleave(tracks, dim=0), (prefix, 0), value=True)


@fx_leaf
def mask_of_keys(
    mask: Bool[Tensor, "b f"] | None, videos: Float[Tensor, "b c f h w"], grid: PatchGrid, prefix: int = 0
) -> Bool[Tensor, "b 1 1 n"] | None:
    """Return which tokens are seen as keys: all but those of padding; None for all of them.

    Args:
        mask: true for frames, false for padding; None for no padding.
        videos: whose frames.
        grid: how videos are cut.

    Raises:
        ValueError: if the mask is not one of these frames, a patch is padding in part, or a video is
            nothing but padding.
    """
    if mask is None:
        return None
    patch, cells = grid.patch[0], grid.fit(videos.shape[2:])[1:]
    if not is_tracing(mask):
        want = (videos.shape[0], videos.shape[2])
        if mask.dtype != torch.bool or mask.shape != want:
            raise ValueError(
                f"expected a boolean mask of {want} (videos, frames), got {mask.dtype} of {tuple(mask.shape)}"
            )
        patches = mask.unflatten(1, (-1, patch))
        if not patches.all(dim=2).equal(patches.any(dim=2)):
            raise ValueError(f"the {patch} frames of a patch are masked together; the mask cuts a patch")
        if not mask.any(dim=1).all():
            raise ValueError("a video must have at least one frame, got a mask without any")
    seen = mask[:, ::patch].repeat_interleave(prod(cells), dim=1)
    return seen_tokens(seen, prefix)


@fx_leaf
def zero_padding(
    tokens: Float[Tensor, "b n d"], keys: Bool[Tensor, "b 1 1 n"] | None
) -> Float[Tensor, "b n d"]:
    """Return tokens of which those that are not seen as keys are zero, whatever they were, also NaN."""
    return tokens if keys is None else tokens.masked_fill(~keys[:, 0, 0, :, None], 0)


@fx_leaf
def mean_of_frames(
    tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b f"] | None, patch: int
) -> Float[Tensor, "b d"]:
    """Return the mean of the tokens that are no padding.

    Args:
        tokens: tokens in the order of time, equally many for each patch of frames.
        mask: true for frames, false for padding; None for no padding.
        patch: frames of a patch.
    """
    return mean_of_seen(tokens, seen_in_frames(tokens, mask, patch))


@fx_leaf
def seen_in_frames(
    tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b f"] | None, patch: int
) -> Bool[Tensor, "b n"] | None:
    """Return which tokens are no padding, None for all of them; see `mean_of_frames`."""
    if mask is None:
        return None
    seen = mask[:, ::patch]
    return seen.repeat_interleave(tokens.shape[1] // seen.shape[1], dim=1)
