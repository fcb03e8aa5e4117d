"""Thicker and Quicker: A Jumbo Token for Fast Plain Vision Transformers.

A. Fuller, Y. Yassin, D. G. Kyrollos, E. Shelhamer, J. R. Green 2025, arXiv:2502.15021.

The class token is several times as wide as a patch's. It is cut into pieces of that width before attention,
and put together again behind it for a feed-forward of its own, which all layers share.

Family: plain
Differs from the paper: the classifier starts from small random values instead of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens


class Handed(nn.Module):
    """A branch that is handed what it computes, so that several residuals can share it."""

    def forward(self, x: Float[Tensor, "*s"], shared: nn.Module) -> Float[Tensor, "*s"]:
        """Apply what is shared."""
        return shared(x)


class JumboBlock(Block):
    """A block with a feed-forward for the patches, and one for the pieces of the jumbo token together.

    Args:
        attention: mixes pieces and patches.
        feedforward: transforms every patch by itself.
        jumbo: the residual of the jumbo token, whose branch is handed the layer that all blocks share.
        pieces: number of pieces, which stand in front of the patches.
    """

    def __init__(self, attention: nn.Module, feedforward: nn.Module, jumbo: Residual, pieces: int) -> None:
        super().__init__(attention, feedforward)
        self.jumbo = jumbo
        self.pieces = pieces

    def forward(self, x: Float[Tensor, "b n d"], *context: Any) -> Float[Tensor, "b n d"]:
        """Apply attention to all tokens, then to the jumbo token and to the patches their feed-forwards.

        Args:
            x: the pieces, then the patches.
            context: the shared feed-forward.
        """
        x = self.attention(x)
        jumbo = self.jumbo(x[:, : self.pieces].flatten(1), *context)
        patches = self.feedforward(x[:, self.pieces :])
        return torch.cat([jumbo.unflatten(1, (self.pieces, -1)), patches], dim=1)


class JumboEncoder(Encoder):
    """Blocks that share the feed-forward of the jumbo token.

    Args:
        block: makes the block of a layer from its index.
        depth: number of blocks.
        shared: the feed-forward.
    """

    def __init__(self, block: Callable[[int], JumboBlock], *, depth: int, shared: nn.Module) -> None:
        super().__init__(block, depth=depth)
        self.shared = shared

    def steps(self, x: Any, *context: Any) -> Iterator[Any]:
        """Give the tokens after every block in turn; each block is handed the shared feed-forward."""
        return super().steps(x, self.shared, *context)


class JumboViT(IsotropicModel):
    """The Vision Transformer with a jumbo class token.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding: the normed pieces one after the other,
            then the mean of the normed patches.
        dim: width of a patch's token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward of the patches.
        jumbo_pieces: how many times as wide as a patch's the jumbo token is.
        jumbo_mult: how many times as wide as that the inside of its feed-forward is.
        channels: channels of the input.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        dim_head: width of a head; `dim / heads` unless told.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide, or there is no piece.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        jumbo_pieces: int = 6,
        jumbo_mult: int = 4,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        dim_head: int | None = None,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="jumbo")
        if min(jumbo_pieces, jumbo_mult) < 1:
            raise ValueError(
                f"jumbo_pieces and jumbo_mult are at least 1, got {jumbo_pieces} and {jumbo_mult}"
            )
        width = width_of_head(dim, heads) if dim_head is None else dim_head
        jumbo_dim = jumbo_pieces * dim
        norm = partial(nn.LayerNorm, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=False, registers=jumbo_pieces)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> JumboBlock:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=width,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            tail = partial(make_tail, dim, drop_path=drop_path_rate(drop_path, layer, depth))
            return JumboBlock(
                Residual(attention, norm(dim), tail()),
                Residual(feedforward, norm(dim), tail()),
                Residual(Handed(), norm(jumbo_dim), tail()),
                jumbo_pieces,
            )

        shared = FeedForward(jumbo_dim, jumbo_mult * jumbo_dim, dropout=dropout)
        self.encoder = JumboEncoder(block, depth=depth, shared=shared)
        self.norm = norm(dim)
        self.head_width = jumbo_dim + dim
        self.reset_classifier(num_classes)

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Give the pieces one after the other, then the mean of the patches."""
        pieces = self.num_prefix_tokens
        return torch.cat([features[:, :pieces].flatten(1), features[:, pieces:].mean(dim=1)], dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth; the shared feed-forward goes with the final norm."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed)\.",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^(?:encoder\.shared|norm)\.", (99999,))],
        }
