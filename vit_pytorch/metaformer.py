"""MetaFormer Baselines for Vision.

W. Yu, C. Si, P. Zhou, M. Luo, Y. Zhou, J. Feng, S. Yan, X. Wang 2022, arXiv:2210.13452.

A transformer's block works with almost any way of mixing its tokens: by the mean of neighbours (PoolFormer,
W. Yu et al. 2021, arXiv:2111.11418), by separable convolutions (ConvFormer), or by convolutions in the first
stages and attention in the last (CAFormer). Feed-forwards have StarReLU, linear layers and norms no biases,
and residual connections learned factors.

Family: pyramid
Differs from the paper: as in timm, whose weights load, PoolFormer's final norm is LayerNorm of the pooled
vector; `map_norm` has the paper's, of the last map. StarReLU learns its factor and its shift from 1 and 0, as
in the authors' code.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, layer, make_scale
from vit_pytorch.layers.conv import MapGroupNorm, MeanOfNeighbours, OnMap
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.tokens import make_classifier
from vit_pytorch.layers.windows import WHOLE, GroupAttention

MIXERS = ("pool", "conv", "attention")
# Pixels from one cell of the first stage to the next, side of the kernel that embeds them, and its padding.
STRIDE, KERNEL, PADDING = 4, 7, 2
# Epsilon of the norms after the blocks.
EPS = 1e-6


class MetaFormer(HierarchicalModel):
    """The pyramid whose stages differ in how they mix cells.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted, from
            3 pixels on.
        dim: channels of each stage.
        depth: number of blocks of each stage.
        mixers: how each stage mixes cells: "pool" (`MeanOfNeighbours`), "conv" (`SeparableConv`) or
            "attention" of each cell to all.
        norm: norms of the blocks: "layer" for LayerNorm of each cell, "group" for `MapGroupNorm`.
        bias: use biases for the norms and the feed-forwards of blocks.
        down_norm: have LayerNorm without bias after the stem and before each convolution that halves the map.
        residual_scale: initial factors of what passes around the branches of each stage; None for no factors,
            of a stage or of all.
        mlp_ratio: hidden dimension of the feed-forward by channels.
        conv_ratio: hidden dimension of a separable convolution by channels.
        kernel_size: side of its kernel, odd.
        pool_size: side of the neighbourhood whose mean is taken, in cells, odd.
        head_ratio: hidden dimension of the classifier by channels; None for a linear classifier.
        map_norm: the final norm is a `MapGroupNorm` of the last map, instead of LayerNorm of the pooled
            vector.
        act: activation of the feed-forward; "star_relu" is the paper's.
        norm_eps: epsilon of the norms up to the last block; those after it have 1e-6.

    Raises:
        ValueError: if the numbers of stages differ, a mixer is unknown, a kernel or neighbourhood has an even
            side, or `dim` is not a multiple of `dim_head` where there is attention.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: Sequence[int] = (64, 128, 320, 512),
        depth: Sequence[int] = (3, 3, 9, 3),
        mixers: Sequence[str] = ("conv", "conv", "attention", "attention"),
        norm: Literal["layer", "group"] = "layer",
        bias: bool = False,
        down_norm: bool = True,
        residual_scale: Sequence[float | None] | None = (None, None, 1.0, 1.0),
        mlp_ratio: float = 4.0,
        conv_ratio: float = 2.0,
        kernel_size: int = 7,
        pool_size: int = 3,
        dim_head: int = 32,
        head_ratio: float | None = 4.0,
        map_norm: bool = False,
        channels: int = 3,
        act: str = "star_relu",
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        scales = (None,) * len(dim) if residual_scale is None else tuple(residual_scale)
        if not len(dim) == len(depth) == len(mixers) == len(scales):
            raise ValueError(
                "dim, depth, mixers and residual_scale must be one for each stage, got "
                f"{tuple(dim)}, {tuple(depth)}, {tuple(mixers)} and {scales}"
            )
        for mixer in mixers:
            check_choice("mixers", mixer, MIXERS)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[STRIDE * 2**stage for stage in range(len(dim))],
            channels=channels,
            min_size=(KERNEL - 2 * PADDING,) * 2,
        )
        self.head_ratio = head_ratio
        build_norm = partial(nn.LayerNorm if norm == "layer" else MapGroupNorm, eps=norm_eps, bias=bias)
        before_conv = partial(nn.LayerNorm, eps=norm_eps, bias=False) if down_norm else nn.Identity

        def mix(stage: int) -> nn.Module:
            width = dim[stage]
            if mixers[stage] == "pool":
                return MeanOfNeighbours(pool_size)
            if mixers[stage] == "conv":
                return SeparableConv(width, int(width * conv_ratio), kernel_size, dropout=dropout)
            attention = Attention(
                width,
                heads=head_dim(width, dim_head),
                dim_head=dim_head,
                qkv_bias=False,
                out_bias=False,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout),
            )
            return GroupAttention(attention, WHOLE)

        def block(stage: int, rate: float) -> Block:
            width = dim[stage]
            return ScaledResidualBlock(
                width,
                mix(stage),
                FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act, bias=bias),
                norm=build_norm,
                layer_scale=layer_scale,
                residual_scale=scales[stage],
                drop_path=rate,
            )

        def down(stage: int) -> nn.Module:
            if stage == 0:
                return nn.Identity()
            conv = OnMap(nn.Conv2d(dim[stage - 1], dim[stage], 3, stride=2, padding=1))
            return nn.Sequential(OrderedDict(norm=before_conv(dim[stage - 1]), conv=conv))

        patches = OnMap(nn.Conv2d(channels, dim[0], KERNEL, STRIDE, PADDING))
        self.stem = nn.Sequential(OrderedDict(conv=patches, norm=before_conv(dim[0])))
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            self.stages.append(Stage(down(stage), [block(stage, rate) for rate in rates]))
        if map_norm:
            self.norm = MapGroupNorm(dim[-1], eps=norm_eps)
        else:
            self.fc_norm = nn.LayerNorm(dim[-1], eps=EPS)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02), kinds=(nn.Linear, nn.Conv2d))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; the norm follows the pooling, but for `map_norm`."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, with a hidden layer of squared ReLU and a norm; the identity for no classes."""
        kind = nn.Linear if self.head_ratio is None else partial(mlp_head, ratio=self.head_ratio)
        return make_classifier(self.classifier_dim, num_classes, like=next(self.parameters()), kind=kind)


def mlp_head(dim: int, num_classes: int, *, ratio: float) -> FeedForward:
    """Build a classifier of two layers, with squared ReLU and LayerNorm between them."""
    norm = partial(nn.LayerNorm, eps=EPS)
    return FeedForward(dim, int(dim * ratio), act="relu2", sub_norm=norm, out_dim=num_classes)


class SeparableConv(FeedForward):
    """Two linear layers with StarReLU and a depth-wise convolution between them (ConvFormer).

    Args:
        kernel: side of the kernel, odd.

    Raises:
        ValueError: if the side is even.
    """

    def __init__(self, dim: int, hidden_dim: int, kernel: int, *, dropout: float) -> None:
        super().__init__(dim, hidden_dim, dropout=dropout, act="star_relu", bias=False)
        if kernel % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel}")
        conv = nn.Conv2d(hidden_dim, hidden_dim, kernel, padding=kernel // 2, groups=hidden_dim, bias=False)
        self.conv = OnMap(conv)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform each cell with those around it."""
        return self.dropout(self.to_out(self.conv(self.act(self.to_hidden(x)))))


class ScaledResidualBlock(Block):
    """A block whose residual connections have learned factors of the channels.

    S. Shleifer, J. Weston, M. Ott 2021, arXiv:2110.09456.

    Args:
        residual_scale: initial factors; None for none.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        residual_scale: float | None,
        **options: Any,
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.around1 = make_scale(dim, residual_scale)
        self.around2 = make_scale(dim, residual_scale)

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Mix the cells, then transform each of them."""
        x = self.around1(x) + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        return self.around2(x) + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))
