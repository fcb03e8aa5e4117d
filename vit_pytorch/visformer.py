"""Visformer: The Vision-friendly Transformer.

Z. Chen, L. Xie, J. Niu, X. Liu, L. Wei, Q. Tian 2021, arXiv:2104.12533.

A transformer is turned into a convolutional network step by step, and what helps is kept: three stages, of
which the first has convolutions in place of attention, a convolutional stem, and batch norm. Learned
positions are added to the map of every stage.

Family: pyramid
Differs from the paper: nothing known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import Attention, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, DropPath, FeedForward, drop_path_rates, layer
from vit_pytorch.layers.conv import ConvNorm, MapBatchNorm, OnMap
from vit_pytorch.layers.init import init_convs
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.windows import WHOLE, GroupAttention

# Pixels from one cell of the stem's map to the next, and cells of it that become one of the first stage.
STRIDE, PATCH = 2, 4


class Visformer(HierarchicalModel):
    """The vision-friendly transformer.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; any smaller one is taken that
            is a multiple of the last stage's stride, 32 for three stages. Its cells have the positions of the
            same places in the largest one.
        dim: channels of the first stage, which double from stage to stage, or of each.
        depth: number of blocks of each stage; those of the first have convolutions, the others attention.
        heads: number of attention heads, for all stages or each; the first has none to use.
        stem_dim: channels of the convolution that halves the image.
        mlp_ratio: hidden dimension of the feed-forward by channels, in stages with attention.
        conv_ratio: that of the first stage, between whose linear layers is the convolution.
        conv_groups: groups of its channels.
        emb_dropout: dropout on the map of each stage after positions are added, in [0, 1).

    Raises:
        ValueError: if the numbers of stages differ, heads do not share the channels, or groups the hidden
            ones.
    """

    # What precedes the blocks of a stage learns at the rate of the first, and positions decay, as in timm.
    down_in_first_block = True
    undecayed = r"(?!)"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: int | Sequence[int] = 192,
        depth: Sequence[int] = (7, 4, 4),
        heads: int | Sequence[int] = 6,
        stem_dim: int = 32,
        mlp_ratio: int | float = 4,
        conv_ratio: int | float = 2,
        conv_groups: int = 8,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        dims = per_stage("dim", dim, len(depth))
        all_heads = per_stage("heads", heads, len(depth), growth=1)
        hidden = int(dims[0] * conv_ratio)
        if hidden % conv_groups:
            raise ValueError(
                f"the first stage's hidden channels must be a multiple of conv_groups, got {hidden} and "
                f"{conv_groups}"
            )
        strides = [STRIDE * PATCH * 2**stage for stage in range(len(depth))]
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            size_multiple=(strides[-1], strides[-1]),
            any_size=False,
        )
        norm = partial(MapBatchNorm, eps=norm_eps)

        def block(stage: int, rate: float) -> nn.Module:
            width, n = dims[stage], all_heads[stage]
            if stage == 0:
                convolved = GroupedBottleneck(width, hidden, groups=conv_groups, dropout=dropout)
                return ConvBlock(norm(width), convolved, drop_path=rate)
            attention = Attention(
                width,
                heads=n,
                dim_head=head_dim(width, n),
                qkv_bias=False,
                out_bias=False,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout, bias=False)
            return Block(width, GroupAttention(attention, WHOLE), feedforward, norm=norm, drop_path=rate)

        self.stem = OnMap(ConvNorm(channels, stem_dim, 7, stride=STRIDE, act="relu", eps=norm_eps))
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            before, patch = (dims[stage - 1], 2) if stage else (stem_dim, PATCH)
            grid = [extent // strides[stage] for extent in self.image_size]
            positions = LearnedPositions(grid, dims[stage])
            conv = nn.Conv2d(before, dims[stage], patch, patch)
            embed = OnMap(conv, nn.BatchNorm2d(dims[stage], eps=norm_eps))
            down = PositionedPatches(embed, positions, dropout=emb_dropout)
            self.stages.append(Stage(down, [block(stage, rate) for rate in rates]))
        self.norm = norm(dims[-1])
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class PositionedPatches(nn.Module):
    """Embed patches of a map, and add positions.

    Args:
        embed: returns the smaller map.
        positions: has a table for the cells of the largest map.
    """

    def __init__(self, embed: nn.Module, positions: LearnedPositions, *, dropout: float) -> None:
        super().__init__()
        self.embed = embed
        self.positions = positions
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the map that enters a stage's blocks."""
        x = self.embed(x)
        return self.dropout((x.flatten(1, 2) + self.positions.table_for(x.shape[1:3])).reshape(x.shape))


class GroupedBottleneck(FeedForward):
    """A feed-forward with a convolution, in groups of channels, between its linear layers.

    Args:
        groups: number of groups.
    """

    def __init__(self, dim: int, hidden_dim: int, *, groups: int, dropout: float = 0.0) -> None:
        super().__init__(dim, hidden_dim, dropout=dropout, bias=False)
        self.conv = OnMap(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=groups, bias=False))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform each cell with those around it."""
        hidden = self.conv(self.dropout(self.act(self.to_hidden(x))))
        return self.dropout(self.to_out(self.act(hidden)))


class ConvBlock(nn.Module):
    """A residual block without attention."""

    def __init__(self, norm: nn.Module, feedforward: nn.Module, *, drop_path: float) -> None:
        super().__init__()
        self.norm2 = norm
        self.feedforward = feedforward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        return x + self.drop_path(self.feedforward(self.norm2(x)))
