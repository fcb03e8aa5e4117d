"""Going deeper with Image Transformers.

H. Touvron, M. Cord, A. Sablayrolles, G. Synnaeve, H. Jégou 2021, arXiv:2103.17239.

Patches alone pass through deep blocks whose heads talk to each other and whose residual branches are scaled
by small learned factors (LayerScale); the class token joins behind them, and gathers what it needs by a few
layers of attention from itself to the patches (class attention).

Family: plain
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import LateClassModel
from vit_pytorch.layers.attention import Attention, ClassAttention, MixHeads, width_of_head
from vit_pytorch.layers.blocks import Block, ClassResidual, Encoder, FeedForward, Residual, make_tail
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.tokens import PrefixTokens


class CaiT(LateClassModel):
    """The Class-Attention image Transformer.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks that the patches pass through.
        cls_depth: number of class-attention blocks behind them.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        channels: channels of the input.
        dropout: dropout after the linear layers of the patches' blocks, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        layer_dropout: probability to drop a residual branch of the patches' blocks for a sample, in
            training, in [0, 1); the same in all blocks.
        dim_head: width of a head; None for `dim / heads`.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights of the patches' blocks, in [0, 1).
        layer_scale: what LayerScale's factors start at, in all blocks; None for the paper's choice by
            depth: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 above.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide.
    """

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
        dim_head = width_of_head(dim, heads) if dim_head is None else dim_head
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)
        scale = scale_by_depth(depth) if layer_scale is None else layer_scale
        attention = partial(
            Attention,
            dim,
            heads=heads,
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            dropout=dropout,
            attend=partial(TalkingHeads, heads, attn_dropout),
        )
        class_attention = partial(ClassAttention, dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias)

        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim, class_token=True)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> Block:
            tail = partial(make_tail, dim, layer_scale=scale, drop_path=layer_dropout)
            return Block(
                Residual(attention(), norm(), tail()),
                Residual(FeedForward(dim, mlp_dim, dropout=dropout), norm(), tail()),
            )

        def class_block(layer: int) -> ClassBlock:
            tail = partial(make_tail, dim, layer_scale=scale)
            return ClassBlock(
                ClassResidual(class_attention(), norm(), tail()),
                Residual(FeedForward(dim, mlp_dim), norm(), tail()),
            )

        self.encoder = Encoder(block, depth=depth)
        self.class_encoder = Encoder(class_block, depth=cls_depth)
        self.norm = norm()
        self.reset_classifier(num_classes)


class TalkingHeads(nn.Module):
    """Attention whose heads exchange scores before the softmax, and weights after it (arXiv:2003.02436).

    Both exchanges are linear over the heads, for every pair of tokens alike. The first one's bias cancels in
    the softmax; published weights have it.

    Args:
        heads: number of heads.
        dropout: probability with which a mixed weight is dropped in training.
    """

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.mix_scores = MixHeads(heads)
        self.mix_weights = MixHeads(heads)
        self.weights = nn.Identity()
        self.mixed = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self, q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h m e"], v: Float[Tensor, "b h m f"]
    ) -> Float[Tensor, "b h n f"]:
        """Attend from every query to all keys."""
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = self.weights(self.mix_scores(scores).softmax(dim=-1))
        return self.dropout(self.mixed(self.mix_weights(weights))) @ v


class ClassBlock(Block):
    """A block that changes the class token alone, by what it reads from all tokens (section 3)."""

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Give the class token, changed, and the patches, as they came."""
        return torch.cat([self.feedforward(self.attention(x)), x[:, 1:]], dim=1)


def scale_by_depth(depth: int) -> float:
    """Give what LayerScale starts at in a model of so many blocks (section 2.2)."""
    if depth <= 18:
        return 0.1
    return 1e-5 if depth <= 24 else 1e-6
