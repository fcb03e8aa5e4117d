"""Decoupling the "What" and "Where" With Polar Coordinate Positional Embeddings, for arrays of one to seven
axes.

A. Gopalakrishnan, R. Csordás, J. Schmidhuber, M. C. Mozer 2025, arXiv:2509.10534.

"PoPE": each channel of a query or a key is a point of the plane, whose length is the softplus of the
channel, what is there, and whose angle is the position, where it is; keys turn further by a learned angle.
It stands in the rotary ViT of `vit_nd_rotary` for the rotations.

Family: plain
Differs from the paper: it is a ViT instead of a language model; positions have any number of axes, along
which frequencies turn as in `vit_nd_rotary`; all layers share the learned angles, as in the public
vit-pytorch package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.attention import Attention, BlockInputs, FusedAttention, Queries
from vit_pytorch.layers.rotary import turns
from vit_pytorch.vit_nd_rotary import GoldenRotary, RotaryViTND, spread


class PolarViTND(RotaryViTND):
    """The Vision Transformer on arrays of one to seven axes (b c ...), with polar positions.

    Args:
        ndim: number of axes.
        input_shape: size of the largest array, one number for all axes or one for each.
        patch_size: size of a patch, one number for all axes or one for each; divides `input_shape`.
        dim_head: head dimension, even.
        pope_min_freq: lowest frequency, in radians a patch.
        pope_max_freq: highest frequency; between, they rise geometrically.
        pope_p_zero_freqs: share of the channels that do not turn, in [0, 1].
        pope_init_learned_bias_uniform: learned angles start anywhere between -2 pi and 0, instead of at 0.
        causal_dims: axes along which a patch sees only patches at its own place or before it; default none.
    """

    undecayed = RotaryViTND.undecayed + r"|^phase$"

    def __init__(
        self,
        *,
        ndim: int,
        input_shape: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pope_min_freq: float = 1.0,
        pope_max_freq: float = 10_000.0,
        pope_p_zero_freqs: float = 0.0,
        pope_init_learned_bias_uniform: bool = False,
        causal_dims: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(
            ndim=ndim,
            input_shape=input_shape,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
            causal_dims=causal_dims,
        )
        still = round(pope_p_zero_freqs * dim_head)
        self.rotary = GoldenRotary(
            self.grid.shape, heads, [0.0] * still + spread(pope_min_freq, pope_max_freq, dim_head - still)
        )
        self.phase = nn.Parameter(torch.zeros(heads, dim_head))
        if pope_init_learned_bias_uniform:
            nn.init.uniform_(self.phase, -2 * pi, 0)
        for part in self.blocks.modules():
            if isinstance(part, Attention):
                part.position = PolarPositions()
                # Queries and keys have twice as many channels there.
                part.kernel = FusedAttention(scale=dim_head**-0.5)

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        groups = super().group_matcher(coarse)
        return {**groups, "stem": groups["stem"] + r"|^phase$"}

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: rotations of queries and of keys, and which patches each
        sees."""
        inputs = super().block_inputs(grid, ids_keep)
        assert inputs.rotation is not None
        cos, sin = inputs.rotation.unbind(-1)
        more_cos, more_sin = turns(self.phase.clamp(-2 * pi, 0))[:, None].unbind(-1)
        keys = torch.stack([cos * more_cos - sin * more_sin, sin * more_cos + cos * more_sin], dim=-1)
        return replace(inputs, rotation=torch.stack([inputs.rotation.to(keys.dtype), keys], dim=-5))


class PolarPositions(nn.Module):
    """Positions inside attention: lengths by content, angles by position."""

    def forward(self, q: Queries, k: Queries, inputs: BlockInputs) -> tuple[Queries, Queries, Tensor | None]:
        """Return queries and keys of twice the channels, and the mask as it is."""
        assert inputs.rotation is not None
        queries, keys = inputs.rotation.unbind(-5)
        return polar(q, queries), polar(k, keys), inputs.mask


def polar(x: Float[Tensor, "b h n e"], rotation: Float[Tensor, "*b h n e 2"]) -> Float[Tensor, "b h n f"]:
    """Return points whose length is the softplus of each channel, and whose angle is the rotation's."""
    length = F.softplus(x.to(torch.promote_types(x.dtype, torch.float32)))
    return (length[..., None] * rotation).flatten(-2).to(x.dtype)


ViTND = PolarViTND
