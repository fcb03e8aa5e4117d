"""VOLO: Vision Outlooker for Visual Recognition.

L. Yuan, Q. Hou, Z. Jiang, J. Feng, S. Yan 2021, arXiv:2106.13112.

Fine cells come first: outlook attention gives each square of cells weights between all of its places, which
a linear layer computes from the mean of some of them, without products of queries and keys. Then a plain
transformer on coarse cells, and CaiT's class attention. A second classifier looks at each coarse cell, as it
learned from labels of places (token labeling, arXiv:2104.10858), and the largest logit of all cells counts
half.

Family: pyramid
Differs from the paper: training mixes no tokens of two images; `DenseHead.image_and_cells` returns what the
loss of token labeling needs. As in the authors' code, stochastic depth spares the Outlookers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    BlockInputs,
    CrossAttention,
    FusedAttention,
    head_dim,
)
from vit_pytorch.layers.blocks import (
    Block,
    ClassAttentionBlock,
    FeedForward,
    drop_path_rates,
    layer,
    plain_blocks,
)
from vit_pytorch.layers.conv import ConvNorm, OnMap
from vit_pytorch.layers.init import init_linears, init_xavier
from vit_pytorch.layers.patches import PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions

# Side of the squares that outlook attention relates, and cells from one to the next.
KERNEL, STRIDE = 3, 2
# What the largest logit of all cells counts.
DENSE_SHARE = 0.5


class VOLO(HierarchicalModel):
    """The vision outlooker.

    Args:
        dim: channels of fine and of coarse cells.
        depth: number of blocks of each stage: Outlookers in the first, transformer blocks in the others.
        heads: number of heads of the Outlookers and of the transformer.
        cls_depth: number of class-attention blocks.
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: pixels from one fine cell to the next; coarse cells are twice as far apart.
        stem_dim: channels of the convolutions of the stem.
        mlp_ratio: hidden dimension of the feed-forward by channels.
        drop_path: probability of dropping a residual branch of a sample in training, in [0, 1); that of the
            last transformer block, to which it rises linearly from 0 at the first Outlooker, though
            Outlookers drop none.

    Raises:
        ValueError: if sizes do not divide, or there are other than two of what fine and coarse cells have.
    """

    pool = "cls"
    needs_last_layers = True

    def __init__(
        self,
        *,
        num_classes: int,
        dim: Sequence[int] = (192, 384),
        depth: Sequence[int] = (4, 4, 8, 2),
        heads: Sequence[int] = (6, 12),
        cls_depth: int = 2,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 8,
        stem_dim: int = 64,
        channels: int = 3,
        mlp_ratio: int | float = 3,
        qkv_bias: bool = False,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        if len(dim) != 2 or len(heads) != 2:
            raise ValueError(
                "dim and heads must be those of fine and of coarse cells, "
                f"got dim={tuple(dim)} and heads={tuple(heads)}"
            )
        if len(depth) < 2:
            raise ValueError(f"depth must be that of two stages at least, got {tuple(depth)}")
        if patch_size % 2:
            raise ValueError(f"patch size must be a multiple of 2, the stride of the stem, got {patch_size}")
        fine, coarse = dim
        size = pair(image_size)
        dims = [fine] + [coarse] * (len(depth) - 1)
        stride = 2 * patch_size
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=[patch_size] + [stride] * (len(depth) - 1),
            channels=channels,
            size_multiple=(stride, stride),
            any_size=False,
        )
        self.num_prefix_tokens = 1
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout)
        size_of_heads: dict[str, Any] = {"heads": heads[1], "dim_head": head_dim(coarse, heads[1])}

        def feedforward(width: int) -> FeedForward:
            return FeedForward(width, int(width * mlp_ratio), dropout=dropout)

        def outlooker() -> Block:
            attention = OutlookAttention(
                fine, heads=heads[0], bias=qkv_bias, dropout=dropout, attn_dropout=attn_dropout
            )
            return Block(fine, attention, feedforward(fine), norm=norm)

        convs = [
            ConvNorm(channels, stem_dim, 7, stride=2, act="relu"),
            *(ConvNorm(stem_dim, stem_dim, act="relu") for _ in range(2)),
        ]
        self.stem = OnMap(*convs, nn.Conv2d(stem_dim, fine, patch_size // 2, patch_size // 2))
        self.stages.append(Stage(nn.Identity(), [outlooker() for _ in range(depth[0])]))
        down: nn.Module = Coarsen(fine, coarse, (size[0] // stride, size[1] // stride), emb_dropout)
        for rates in drop_path_rates(drop_path, depth)[1:]:
            blocks = plain_blocks(
                coarse,
                **size_of_heads,
                depth=len(rates),
                mlp_dim=int(coarse * mlp_ratio),
                dropout=dropout,
                attn_dropout=attn_dropout,
                drop_path=rates,
                qkv_bias=qkv_bias,
                norm=norm,
            )
            self.stages.append(TransformerStage(down, blocks))
            down = nn.Identity()
        self.prefix = PrefixTokens(coarse)
        self.class_blocks = nn.ModuleList(
            ClassAttentionBlock(
                coarse,
                CrossAttention(coarse, **size_of_heads, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel),
                feedforward(coarse),
                norm=norm,
            )
            for _ in range(cls_depth)
        )
        self.norm = norm(coarse)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the class token and the coarse cells after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        tokens = self.prefix(x.flatten(1, 2))
        for block in self.class_blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def takes_norm(self, stage: int) -> bool:
        """Return whether the final norm is for maps of a stage: all those of coarse cells."""
        return stage > 0

    def forward_head(
        self, features: Float[Tensor, "b n d"], pre_logits: bool = False
    ) -> Float[Tensor, "b k ..."]:
        """Classify the class token and the cells; see `VisionModel.forward_head`.

        Args:
            features: output of `forward_features`.
            pre_logits: return the class token.
        """
        if pre_logits or isinstance(self.head, nn.Identity):
            return super().forward_head(features, pre_logits)
        return self.head(self.to_latent(features))

    def make_head(self, num_classes: int) -> nn.Module:
        """Build the classifiers of the class token and of the cells; the identity for no classes."""
        if num_classes == 0:
            return nn.Identity()
        return DenseHead(self.classifier_dim, num_classes).to(self.prefix.class_token)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the coarse ones by stage."""
        groups = super().group_matcher(coarse)
        *blocks, norm = groups["blocks"]
        return {
            "stem": r"^(?:stem|prefix|stages\.1\.down\.positions)\.",
            "blocks": blocks,
            "class_blocks": [(r"^class_blocks\.(\d+)", None), norm],
        }


class TransformerStage(Stage):
    """Apply blocks to the cells of a map, after `down`, as tokens."""

    @layer
    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the map of this stage."""
        x = self.down(x)
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.unflatten(1, (height, width))


class OutlookAttention(nn.Module):
    """Attention between the nine places of each square of cells, by weights from the mean of four of them.

    Section 3.1, algorithm 1, for squares around every second cell along each axis: the mean of the middle
    cell and those to its right and below gives, by a linear layer, what each place takes from each. A cell is
    in several squares, and sums what it gets in all of them.

    Args:
        bias: use a bias for the values.
        attn_dropout: dropout on the weights.
    """

    def __init__(
        self, dim: int, *, heads: int, bias: bool = False, dropout: float = 0.0, attn_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim(dim, heads) ** -0.5
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.pool = OnMap(nn.AvgPool2d(STRIDE))
        self.to_weights = nn.Linear(dim, heads * KERNEL**4)
        self.weights = nn.Identity()
        self.attn_dropout = nn.Dropout(attn_dropout)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.to_v, self.to_weights, self.to_out):
            init_xavier(linear)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform a map of even height and width."""
        places = {"kernel_size": KERNEL, "padding": KERNEL // 2, "stride": STRIDE}
        cells = F.unfold(self.to_v(x).permute(0, 3, 1, 2), **places)
        values = cells.unflatten(1, (self.heads, -1, KERNEL**2)).permute(0, 1, 4, 3, 2)
        scores = self.to_weights(self.pool(x)).flatten(1, 2).unflatten(2, (self.heads, KERNEL**2, -1))
        # The nine places of a square after those of the square before: (b heads places 9).
        weights = (scores.permute(0, 2, 1, 3, 4) * self.scale).softmax(dim=-1).flatten(2, 3)
        weights = self.attn_dropout(self.weights(weights)).unflatten(2, (-1, KERNEL**2))
        mixed = (weights @ values).permute(0, 1, 4, 3, 2).flatten(1, 3)
        merged = F.fold(mixed, (x.shape[1], x.shape[2]), **places).permute(0, 2, 3, 1)
        return self.dropout(self.to_out(merged))


class Coarsen(nn.Module):
    """Halve the map by a convolution of 2 x 2 cells, and add positions.

    Args:
        grid: rows and columns of coarse cells of the largest input.
    """

    def __init__(self, dim: int, out_dim: int, grid: tuple[int, int], dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = OnMap(nn.Conv2d(dim, out_dim, 2, 2))
        self.positions = LearnedPositions(grid, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the map of coarse cells."""
        x = self.conv(x)
        height, width = x.shape[1:3]
        # The grid is a list: tuples are compared with the table's, which tracing cannot follow.
        x = self.positions(x.flatten(1, 2), prefix=0, grid=[height, width])
        return self.dropout(x).unflatten(1, (height, width))


class DenseHead(nn.Module):
    """The logits of the class token and, by half, the largest of all cells, for each class.

    Z. Jiang et al. 2021, arXiv:2104.10858 (token labeling).
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, num_classes)
        self.dense = nn.Linear(dim, num_classes)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))

    def image_and_cells(
        self, tokens: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b m k"]]:
        """Return the logits of the class token and those of each cell, as token labeling trains them.

        Args:
            tokens: the class token, then the cells.
        """
        return self.classifier(tokens[:, 0]), self.dense(tokens[:, 1:])

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k"]:
        """Return the logits of images."""
        logits, dense = self.image_and_cells(tokens)
        return logits + DENSE_SHARE * dense.amax(dim=1)
