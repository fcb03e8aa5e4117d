"""PVT v2: Improved Baselines with Pyramid Vision Transformer.

W. Wang, E. Xie, X. Li, D.-P. Fan, K. Song, D. Liang, T. Lu, P. Luo, L. Shao 2021, arXiv:2106.13797.

A pyramid of plain attention that larger maps can afford: keys and values come from a summary of the map,
which a strided convolution makes, or, for linear cost, the mean of cells. Patches overlap, and a depth-wise
convolution within the feed-forward is the only source of positions.

Family: pyramid
Differs from the paper: nothing known. Linear attention is as in the authors' code: the means are projected,
normed and activated, and a ReLU stands before the convolution of the feed-forward.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import CrossAttention, FusedAttention, heads_per_stage
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, layer
from vit_pytorch.layers.conv import OnMap
from vit_pytorch.layers.init import init_convs, init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.windows import SubsampledAttention, convolved_summary

# Pixels from one cell of the first stage to the next, and the side of the kernel that embeds them.
STRIDE, KERNEL = 4, 7
# Side, in cells, of the summary of linear attention.
SUMMARY = 7


class PVTv2(HierarchicalModel):
    """The pyramid vision transformer, version 2.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted in
            which no stage's map is smaller than its `reduction`.
        dim: channels of each stage.
        depth: number of blocks of each stage.
        heads: number of heads of each stage; default one for 32 channels.
        reduction: side of the squares of cells that one key and value summarises, for all stages or each;
            None for linear attention, whose keys and values come from the means of 7 x 7 parts of the map.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        norm_eps: epsilon of the LayerNorms of blocks and stages; those after convolutions have 1e-5.

    Raises:
        ValueError: if the numbers of stages differ, heads do not share the channels, or the customary input
            is smaller than the least.
    """

    # All of a stage learns at one rate, as in timm.
    stage_is_layer = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: Sequence[int] = (64, 128, 320, 512),
        depth: Sequence[int] = (3, 4, 6, 3),
        heads: Sequence[int] | None = (1, 2, 5, 8),
        reduction: int | Sequence[int] | None = (8, 4, 2, 1),
        mlp_ratio: int | float | Sequence[int | float] = (8, 8, 4, 4),
        qkv_bias: bool = True,
        channels: int = 3,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        if len(dim) != len(depth):
            raise ValueError(f"dim and depth must be one for each stage, got {tuple(dim)} and {tuple(depth)}")
        linear = reduction is None
        sides = per_stage("reduction", 1 if reduction is None else reduction, len(dim), growth=1)
        ratios = per_stage("mlp_ratio", mlp_ratio, len(dim), growth=1)
        all_heads = heads_per_stage(dim, heads)
        strides = [STRIDE * 2**stage for stage in range(len(dim))]
        # A map that is not a multiple is rounded up.
        least = max(stride * (side - 1) + 1 for stride, side in zip(strides, sides, strict=True))
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=strides,
            channels=channels,
            min_size=(least, least),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def block(stage: int, rate: float) -> Block:
            width, count = dim[stage], all_heads[stage]
            attention = CrossAttention(
                width,
                heads=count,
                dim_head=width // count,
                qkv_bias=qkv_bias,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout),
            )
            summary = pooled_summary(width) if linear else convolved_summary(width, sides[stage])
            feedforward = ConvolvedFeedForward(
                width, int(width * ratios[stage]), relu=linear, dropout=dropout
            )
            return Block(
                width, SubsampledAttention(attention, summary), feedforward, norm=norm, drop_path=rate
            )

        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            before, kernel, stride = (dim[stage - 1], 3, 2) if stage else (channels, KERNEL, STRIDE)
            patches = OnMap(nn.Conv2d(before, dim[stage], kernel, stride, kernel // 2))
            down = nn.Sequential(patches, nn.LayerNorm(dim[stage]))
            self.stages.append(
                NormedStage(down, [block(stage, rate) for rate in rates], norm=norm(dim[stage]))
            )
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map, which its stage has normed."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


class NormedStage(Stage):
    """A stage that ends with a norm.

    Args:
        down: embeds overlapping patches of the map before.
        norm: acts on the map after the blocks.
    """

    def __init__(self, down: nn.Module, blocks: Iterable[nn.Module], *, norm: nn.Module) -> None:
        super().__init__(down, blocks)
        self.norm = norm

    @layer
    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the map of this stage."""
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ConvolvedFeedForward(FeedForward):
    """A feed-forward with a depth-wise convolution before the activation.

    Args:
        relu: a ReLU stands before the convolution, too.
    """

    def __init__(self, dim: int, hidden_dim: int, *, relu: bool, dropout: float = 0.0) -> None:
        super().__init__(dim, hidden_dim, dropout=dropout)
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.conv = OnMap(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform each cell with those around it."""
        hidden = self.act(self.conv(self.relu(self.to_hidden(x))))
        return self.dropout(self.to_out(self.dropout(hidden)))


def pooled_summary(dim: int) -> nn.Sequential:
    """Build the summary of linear attention: means of 7 x 7 parts of the map, projected."""
    return nn.Sequential(
        OrderedDict(
            pool=OnMap(nn.AdaptiveAvgPool2d(SUMMARY)),
            project=nn.Linear(dim, dim),
            norm=nn.LayerNorm(dim),
            act=nn.GELU(),
        )
    )
