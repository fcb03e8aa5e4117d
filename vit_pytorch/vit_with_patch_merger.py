"""Learning to Merge Tokens in Vision Transformers.

C. Renggli, A. Susano Pinto, N. Houlsby, B. Mustafa, J. Puigcerver, C. Riquelme 2022, arXiv:2202.12015.

Halfway through a ViT, one layer merges all patches into a few tokens: each is a convex combination of the
normed patches, by a learned score for each. The blocks behind work on these few.

Family: plain
Differs from the paper: the models with experts are not here; the classifier and the merging scores start
from small random values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions


class PatchMerger(nn.Module):
    """Merge any number of tokens into a few: softmax(scale * W LN(x)^T) LN(x), over the tokens.

    Args:
        dim: width of a token.
        num_tokens_out: number of merged tokens.
        scale: factor on the scores; the public vit-pytorch package has 1 / sqrt(dim), the paper none.
        norm_eps: epsilon of the LayerNorm.
    """

    def __init__(self, dim: int, num_tokens_out: int, *, scale: float = 1.0, norm_eps: float = 1e-6) -> None:
        super().__init__()
        if num_tokens_out < 1:
            raise ValueError(f"tokens are merged into at least 1, got num_tokens_out={num_tokens_out}")
        self.scale = scale
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.queries = nn.Parameter(torch.empty(num_tokens_out, dim))
        nn.init.trunc_normal_(self.queries, std=dim**-0.5)
        self.attend = FusedAttention(scale=scale)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Merge the tokens of each sample."""
        x = self.norm(x)[:, None]
        return self.attend(self.queries.expand(x.shape[0], 1, -1, -1), x, x)[:, 0]


class MergingEncoder(Encoder):
    """A stack of blocks with a merger between two of them.

    Args:
        block: makes the block of a layer from its index.
        depth: number of blocks.
        merger: what merges the tokens.
        layer: number of blocks in front of the merger.
    """

    def __init__(
        self, block: Callable[[int], nn.Module], *, depth: int, merger: PatchMerger, layer: int
    ) -> None:
        super().__init__(block, depth=depth)
        self.merger = merger
        self.layer = layer

    def steps(self, x: Float[Tensor, "b n d"]) -> Iterator[Float[Tensor, "b m d"]]:
        """Give the tokens after every block in turn."""
        for layer, block in enumerate(self.blocks):
            x = self.run(block, self.merger(x) if layer == self.layer else x)
            yield x


class PatchMergerViT(IsotropicModel):
    """A Vision Transformer whose patches are merged into a few tokens on the way; the mean is classified.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks, at least 2.
        heads: number of attention heads.
        patch_merge_layer: blocks in front of the merger, from 1 to depth - 1; None for half of them.
        patch_merge_num_tokens: number of merged tokens.
        mlp_dim: width inside the feed-forward.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        channels: channels of the input.
        dim_head: width of a head.
        scale: factor on the merging scores (see `PatchMerger`).
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.
        patch_norm: whether LayerNorms stand before and after the patch projection.

    Raises:
        ValueError: where sizes do not divide, or the merger does not stand between two blocks.
    """

    encoder: MergingEncoder

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        patch_merge_layer: int | None = None,
        patch_merge_num_tokens: int = 8,
        mlp_dim: int,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        channels: int = 3,
        dim_head: int = 64,
        scale: float = 1.0,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        layer = depth // 2 if patch_merge_layer is None else patch_merge_layer
        if not 1 <= layer < depth:
            raise ValueError(f"patch_merge_layer is 1 to depth - 1 of {depth} blocks, got {layer}")
        norm = partial(nn.LayerNorm, dim, eps=norm_eps)

        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> Block:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            tail = partial(make_tail, dim, drop_path=drop_path_rate(drop_path, layer, depth))
            return Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        merger = PatchMerger(dim, patch_merge_num_tokens, scale=scale, norm_eps=norm_eps)
        self.encoder = MergingEncoder(block, depth=depth, merger=merger, layer=layer)
        self.norm = norm()
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is; blocks behind the merger have no map."""
        return super().feature_info[: self.encoder.layer]

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and positions."""
        return super().no_weight_decay() | {"encoder.merger.queries"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth; the merger goes with the block behind it."""
        groups = super().group_matcher(coarse)
        groups["blocks"].append((r"^encoder\.merger\.", (self.encoder.layer,)))
        return groups


ViT = PatchMergerViT
