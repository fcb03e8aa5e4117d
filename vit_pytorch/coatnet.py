"""CoAtNet: Marrying Convolution and Attention for All Data Sizes.

Z. Dai, H. Liu, Q. V. Le, M. Tan 2021, arXiv:2106.04803.

A pyramid that convolves while maps are large and attends when they are small: after a convolutional stem, two
stages of MBConvs, which generalise well, then two of transformer blocks, which have the greater capacity. A
cell attends to the whole map, with a learned bias for each offset, so that attention, too, weighs cells by
where they are relative to each other.

Family: pyramid
Differs from the paper: as in timm, whose weights load, maps are halved by means, where the paper takes maxima
(`padding="max"`), and the convolution of an MBConv that halves them is the depthwise one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, layer, tanh_layer
from vit_pytorch.layers.conv import (
    PADDINGS,
    SHRINKAGE,
    MapBatchNorm,
    OnMap,
    conv_form,
    conv_stem,
    halving_pool,
    shortcut,
)
from vit_pytorch.layers.init import init_convs
from vit_pytorch.layers.options import OptionLike, check_choice, per_stage
from vit_pytorch.layers.patches import pair, to_ntuple
from vit_pytorch.layers.relative import LogBias, RelativeBias, crop_pairs
from vit_pytorch.layers.windows import WHOLE, GroupAttention, Partition

LAYOUTS = ("C", "T", "CT")


class CoAtNet(HierarchicalModel):
    """Two stages of convolutions, two of attention.

    Height and width of an input are multiples of 32, and at most those of `image_size`.

    Args:
        dim: channels of the first stage, which double from stage to stage; or those of each stage.
        dim_conv_stem: channels of the convolutional stem, or of each of its two convolutions; default `dim`.
        mbconv_expansion_rate: hidden channels of an MBConv, as a multiple of its output channels.
        mbconv_shrinkage_rate: hidden dimension of its squeeze-and-excitation, as a multiple of its output
            channels.
        image_size: the largest input, one number or (height, width) in pixels.
        layout: blocks of each stage: "C" for convolutions, "T" for transformer blocks, "CT" for transformer
            blocks after one convolution (section 2.2).
        conv: the convolutional blocks: "mbconv" (`MBConvs`) or, as in CoAtNeXt, "convnext" (`ConvNeXts`).
        mlp_ratio: hidden dimension of the feed-forwards, as a multiple of the stage's.
        padding: how maps are halved: by the mean of 2 x 2 cells ("mixed", "same") or of 3 x 3 ("symmetric"),
            or by the maximum of 3 x 3 ("max"); strided convolutions are padded on all sides, for "same" as
            TensorFlow does.
        widen_last: the heads of a block that halves the map are those of its input's channels, which the
            output projection widens, instead of its output's.
        shortcut_bias: use a bias for the shortcut of a transformer block.
        norm: the norms of transformer blocks, and the last one: "layer" or "batch".
        relative_dim: hidden dimension of a network that computes the biases of offsets (`LogBias`); default a
            table.
        head_hidden: have a tanh layer before the classifier, and the norm after pooling; otherwise the norm
            acts on the last map.
        bn_eps: epsilon of the norms of convolutions.

    Raises:
        ValueError: if there is not a layout for each stage, or if `dim` is not a multiple of `dim_head` where
            there is attention.
    """

    stage_is_layer = True
    undecayed = HierarchicalModel.undecayed + r"|\.bias\.network\."

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int],
        depth: Sequence[int],
        dim_conv_stem: int | Sequence[int] | None = None,
        dim_head: int = 32,
        mbconv_expansion_rate: float = 4.0,
        mbconv_shrinkage_rate: float = SHRINKAGE,
        dropout: float = 0.0,
        channels: int = 3,
        image_size: int | Sequence[int] = 224,
        layout: Sequence[str] = ("C", "C", "T", "T"),
        conv: OptionLike = "mbconv",
        mlp_ratio: float = 4.0,
        act: str = "gelu",
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        padding: str = "mixed",
        widen_last: bool = False,
        shortcut_bias: bool = True,
        norm: Literal["layer", "batch"] = "layer",
        relative_dim: int | None = None,
        layer_scale: float | None = None,
        head_hidden: bool = True,
        norm_eps: float = 1e-6,
        bn_eps: float = 1e-5,
    ) -> None:
        check_choice("padding", padding, PADDINGS)
        if len(layout) != len(depth):
            raise ValueError(f"layout must be one for each of {len(depth)} stages, got {tuple(layout)}")
        for kinds in layout:
            check_choice("layout", kinds, LAYOUTS)
        form = conv_form(conv)
        dims = per_stage("dim", dim, len(depth))
        stem_dims = to_ntuple(dims[0] if dim_conv_stem is None else dim_conv_stem, 2)
        stride = 2 ** (len(depth) + 1)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[4 * 2**stage for stage in range(len(depth))],
            channels=channels,
            size_multiple=(stride, stride),
            any_size=False,
        )
        build_norm = partial(nn.LayerNorm if norm == "layer" else MapBatchNorm, eps=norm_eps)
        self.stem = conv_stem(
            channels,
            stem_dims,
            padding=padding,
            norm=form.norm(bn_eps),
            act=form.act or act,
            bias=(False, False),
        )

        def convolution(before: int, width: int, halve: bool, drop: float) -> nn.Module:
            return form.block(
                before,
                width,
                halve=halve,
                expansion=mbconv_expansion_rate,
                shrinkage=mbconv_shrinkage_rate,
                act=act,
                padding=padding,
                project=False,
                eps=bn_eps,
                drop_path=drop,
            )

        def transformer(before: int, width: int, halve: bool, drop: float, grid: tuple[int, ...]) -> Block:
            heads = head_dim(before if widen_last else width, dim_head)
            attention = Attention(
                before,
                heads=heads,
                dim_head=dim_head,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout),
                out_dim=width,
            )
            bias = (
                RelativeBias(grid, heads) if relative_dim is None else LogBias(grid, heads, dim=relative_dim)
            )
            parts = (
                MapAttention(attention, bias),
                FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act),
            )
            options: dict[str, Any] = {"norm": build_norm, "layer_scale": layer_scale, "drop_path": drop}
            if not halve:
                return Block(width, *parts, **options)
            around = shortcut(before, width, pool=halving_pool(padding), project=False, bias=shortcut_bias)
            return HalvingBlock(
                before, width, *parts, pool=OnMap(halving_pool(padding)), shortcut=around, **options
            )

        before = stem_dims[1]
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            width, grid = dims[stage], tuple(side // self.strides[stage] for side in self.image_size)
            blocks: list[nn.Module] = []
            for index, drop in enumerate(rates):
                halve = index == 0
                convolves = layout[stage] == "C" or (layout[stage] == "CT" and halve)
                blocks.append(
                    convolution(before, width, halve, drop)
                    if convolves
                    else transformer(before, width, halve, drop, grid)
                )
                before = width
            self.stages.append(Stage(nn.Identity(), blocks))
        init_convs(self)
        if head_hidden:
            self.fc_norm = build_norm(dims[-1])
            self.pre_logits = tanh_layer(dims[-1], dims[-1])
        else:
            self.norm = build_norm(dims[-1])
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage: stem, convolutions, attention (section 2.2, figure 4)."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class MapAttention(GroupAttention):
    """Attention from each cell to all cells, with a bias for their offset (section 2.1, equation 3).

    A smaller map than that of `image_size` has fewer offsets.

    Args:
        attention: projects, attends and merges.
        bias: returns what is added to the scores of the largest map.
    """

    bias: RelativeBias | LogBias

    def __init__(self, attention: Attention, bias: RelativeBias | LogBias) -> None:
        super().__init__(attention, WHOLE)
        self.bias = bias

    def partition_for(self, grid: tuple[int, int]) -> tuple[Partition, Float[Tensor, "1 h n n"]]:
        """Return the partition of a map, one group, and what is added to its scores."""
        return self.partition, crop_pairs(self.bias(), self.bias.window, grid, 1)[None]


class HalvingBlock(Block):
    """A transformer block that halves the map, before attention and around it (appendix A.1).

    Args:
        dim: channels of the map.
        out_dim: channels of the halved map.
        pool: halves the map.
        shortcut: halves the map that passes around attention, and projects it.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        pool: nn.Module,
        shortcut: nn.Module,
        **options: Any,
    ) -> None:
        super().__init__(out_dim, attention, feedforward, norm=norm, **options)
        self.norm1 = nn.Sequential(OrderedDict(norm=norm(dim), pool=pool))
        self.shortcut = shortcut

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b y x e"]:
        """Transform the map: Proj(Pool(x)) + Attention(Pool(Norm(x))), then the feed-forward."""
        x = self.shortcut(x) + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))
