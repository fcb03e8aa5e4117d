"""Thicker and Quicker: A Jumbo Token for Fast Plain Vision Transformers.

A. Fuller, Y. Yassin, D. G. Kyrollos, E. Shelhamer, J. R. Green 2025, arXiv:2502.15021.

The class token is several times as wide as a patch's. It is cut into pieces of that width before attention,
and put together again after it for a feed-forward of its own, which all layers share.

Family: plain
Differs from the paper: the classifier starts from small random values instead of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate, layer
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions


class JumboViT(IsotropicModel):
    """The Vision Transformer with a jumbo class token.

    Args:
        num_classes: number of logits; 0 for the pooled embedding: the normed pieces and the mean of
            the normed patches, concatenated.
        jumbo_pieces: dimension of the jumbo token, in multiples of `dim`.
        jumbo_mult: hidden dimension of its feed-forward, in multiples of its dimension.

    Raises:
        ValueError: if sizes do not divide, or `jumbo_pieces` or `jumbo_mult` is below 1.
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
        dim_head = head_dim(dim, heads) if dim_head is None else dim_head
        size: dict[str, Any] = {"heads": heads, "dim_head": dim_head}
        jumbo_dim = jumbo_pieces * dim
        norm = partial(nn.LayerNorm, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=False, registers=jumbo_pieces)
        self.dropout = nn.Dropout(emb_dropout)
        kernel = partial(FusedAttention, attn_dropout)
        self.blocks = nn.ModuleList(
            JumboBlock(
                dim,
                Attention(dim, **size, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel),
                FeedForward(dim, mlp_dim, dropout=dropout),
                pieces=jumbo_pieces,
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, depth),
            )
            for index in range(depth)
        )
        # These come after the shared feed-forward: optimizer states go by the order of parameters.
        del self.norm, self.head
        self.jumbo_feedforward = FeedForward(jumbo_dim, jumbo_mult * jumbo_dim, dropout=dropout)
        self.norm = norm(dim)
        self.classifier_dim = jumbo_dim + dim
        self.reset_classifier(num_classes)
        self.positions = LearnedPositions(grid.shape, dim)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the pieces of the jumbo token first (section 3)."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: the jumbo token's feed-forward, which all of them share."""
        return replace(super().block_inputs(grid, ids_keep), shared=self.jumbo_feedforward)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b e"]:
        """Return the pieces and the mean of the patches, concatenated."""
        pieces = self.num_prefix_tokens
        return torch.cat([features[:, :pieces].flatten(1), features[:, pieces:].mean(dim=1)], dim=1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the shared feed-forward goes with the final norm."""
        return {
            "stem": r"^(?:prefix|positions|patch_embed)\.",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:jumbo_feedforward|norm)\.", (99999,))],
        }


class JumboBlock(Block):
    """A block with a feed-forward for each patch, and another one for the whole jumbo token.

    Args:
        pieces: number of pieces of the jumbo token, which come before the patches.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        pieces: int,
        norm: Callable[[int], nn.Module],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(dim, attention, feedforward, norm=norm, drop_path=drop_path)
        self.pieces = pieces
        self.jumbo_norm = norm(pieces * dim)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform pieces and patches.

        Args:
            inputs: with the jumbo token's feed-forward, which all blocks share.
        """
        assert inputs.shared is not None
        x = x + self.drop_path(self.attention(self.norm1(x)))
        jumbo, patches = x[:, : self.pieces].flatten(1), x[:, self.pieces :]
        jumbo = jumbo + self.drop_path(inputs.shared(self.jumbo_norm(jumbo)))
        patches = patches + self.drop_path(self.feedforward(self.norm2(patches)))
        return torch.cat([jumbo.unflatten(1, (self.pieces, -1)), patches], dim=1)
