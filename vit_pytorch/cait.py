"""Going deeper with Image Transformers.

H. Touvron, M. Cord, A. Sablayrolles, G. Synnaeve, H. Jégou 2021, arXiv:2103.17239.

Only patches pass through deep blocks, whose heads talk to each other and whose residual branches are scaled
by small learned factors (LayerScale); the class token joins after them, and gathers what it needs by a few
layers of attention from itself to all tokens (class attention).

Family: plain
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import Attention, CrossAttention, TalkingHeads, head_dim
from vit_pytorch.layers.blocks import Block, ClassAttentionBlock, FeedForward
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions


class CaiT(IsotropicModel):
    """The Class-Attention image Transformer.

    Args:
        depth: number of blocks that the patches pass through.
        cls_depth: number of class-attention blocks after them.
        dropout: dropout after the linear layers of the patches' blocks, in [0, 1).
        layer_dropout: probability of dropping a residual branch of the patches' blocks for a sample, in
            training, in [0, 1); the same in all blocks.
        attn_dropout: dropout on the attention weights of the patches' blocks, in [0, 1).
        layer_scale: initial value of LayerScale's factors, in all blocks; default the paper's choice by
            depth: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 above.
    """

    positions: LearnedPositions

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        cls_depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        layer_dropout: float = 0.0,
        dim_head: int | None = None,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels)
        dim_head = head_dim(dim, heads) if dim_head is None else dim_head
        size: dict[str, Any] = {"heads": heads, "dim_head": dim_head}
        norm = partial(nn.LayerNorm, eps=norm_eps)
        scale = scale_by_depth(depth) if layer_scale is None else layer_scale
        kernel = partial(TalkingHeads, heads, attn_dropout)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=True)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                Attention(dim, **size, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                layer_scale=scale,
                drop_path=layer_dropout,
            )
            for _ in range(depth)
        )
        self.class_blocks = nn.ModuleList(
            ClassAttentionBlock(
                dim,
                CrossAttention(dim, **size, qkv_bias=qkv_bias),
                FeedForward(dim, mlp_dim),
                norm=norm,
                layer_scale=scale,
            )
            for _ in range(cls_depth)
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    @property
    def num_encoder_prefix_tokens(self) -> int:
        """None: the class token comes after the patches' blocks."""
        return 0

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first."""
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        tokens = self.dropout(self.positions(self.patch_embed(images), prefix=0, grid=grid))
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.prefix(tokens)
        for block in self.class_blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm does.

        Class attention learns at the rates of the last of the patches' blocks, as many as it has layers.
        """
        depth, cls_depth = len(self.blocks), len(self.class_blocks)
        late = [(rf"^class_blocks\.{i}\.", (depth - cls_depth + i,)) for i in range(cls_depth)]
        groups = super().group_matcher(coarse)
        return {**groups, "blocks": [*late, *groups["blocks"]]}


def scale_by_depth(depth: int) -> float:
    """Return the initial value of LayerScale in a model of so many blocks (section 2.2)."""
    if depth <= 18:
        return 0.1
    return 1e-5 if depth <= 24 else 1e-6
