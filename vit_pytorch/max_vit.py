"""MaxViT: Multi-Axis Vision Transformer.

Z. Tu, H. Talebi, H. Zhang, F. Yang, P. Milanfar, A. Bovik, Y. Li 2022, arXiv:2204.01697.

A pyramid whose block lets a cell see near and far at linear cost: an MBConv, attention within windows of
neighbouring cells, then attention within groups that are spread over the whole map like a grid. Windows and
grids have as many cells on all stages, and learned biases for each offset.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import (
    Block,
    Encoder,
    FeedForward,
    Residual,
    activation,
    drop_path_rate,
    make_tail,
)
from vit_pytorch.layers_v01.conv import InvertedBottleneck, OnMap, SqueezeExcite
from vit_pytorch.layers_v01.init import init_convs, init_xavier
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.relative import RelativeBias
from vit_pytorch.layers_v01.windows import GroupAttention, grid_groups, windows


class HalvingConv(nn.Conv2d):
    """A 3 x 3 convolution of stride 2, which pads below and on the right alone, as TensorFlow does.

    On a map of even extents, whose cells the convolution's places meet there.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Halve the map."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class MBConv(Residual):
    """A pre-normed inverted bottleneck around which the map passes pooled (section 3.3 and appendix A.1).

    Args:
        branch: the bottleneck.
        norm: acts on what enters the branch.
        tail: what stands between the branch and the sum.
        shortcut: brings the map to the size and the width of what leaves the branch.
    """

    def __init__(
        self, branch: nn.Module, norm: nn.Module, tail: Sequence[nn.Module], shortcut: nn.Module
    ) -> None:
        super().__init__(branch, norm, tail)
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map, which a strided block halves."""
        return self.shortcut(x) + self.update(x)


class MaxViTBlock(nn.Module):
    """Convolution, attention within windows, attention within grids (figure 2).

    Args:
        conv: the convolution.
        window: a transformer block whose attention is local.
        grid: one whose attention is spread over the map.
    """

    def __init__(self, conv: nn.Module, window: Block, grid: Block) -> None:
        super().__init__()
        self.conv = conv
        self.window = window
        self.grid = grid

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        return self.grid(self.window(self.conv(x)))


class MaxViT(HierarchicalModel):
    """The multi-axis vision transformer.

    Height and width of an input are multiples of 32 windows, 224 pixels for windows of 7 cells: the map of
    the last stage, an eighth of the first one's, has to consist of whole windows.

    Args:
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of the first stage, which doubles from stage to stage.
        depth: number of blocks of each stage.
        dim_conv_stem: width of the convolutional stem; `dim` unless told.
        dim_head: width of a head.
        window_size: cells of a window and of a grid, one number or (height, width); a 32nd of `image_size`
            unless told.
        mbconv_expansion_rate: by what an MBConv widens, as a multiple of the width that leaves it.
        mbconv_shrinkage_rate: width of its squeeze-and-excitation, as a multiple of the width that leaves it.
        dropout: dropout after the linear layers of the transformer blocks, in [0, 1).
        channels: channels of the input.
        image_size: the customary input, one number or (height, width) in pixels; 32 windows, or 224 pixels,
            unless told.
        mlp_ratio: width inside the feed-forwards, as a multiple of the stage's.
        act: name of the activation (see `layers.blocks.ACTIVATIONS`).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a branch at the last block, in [0, 1); rises linearly from 0.
        padding: "same" pads strided convolutions as TensorFlow does and pools 2 x 2 cells around them;
            "symmetric" pads them on all sides and pools 3 x 3.
        project_shortcuts: whether the pooled map is projected where its width stays as it is, too.
        scale_by: whether attention's scores are divided by the root of the width of a "head", or of the
            stage's width, "dim".
        representation_size: width of the tanh layer in front of the classifier; the last stage's unless told.
        stem_bias: whether the first convolution has a bias.
        head_bias: whether the classifier has a bias.
        norm_eps: epsilon of the LayerNorms.
        bn_eps: epsilon of the batch norms.

    Raises:
        ValueError: where the widths are not multiples of `dim_head`, or the image not of the windows.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        depth: Sequence[int],
        dim_conv_stem: int | None = None,
        dim_head: int = 32,
        window_size: int | Sequence[int] | None = None,
        mbconv_expansion_rate: float = 4.0,
        mbconv_shrinkage_rate: float = 0.25,
        dropout: float = 0.0,
        channels: int = 3,
        image_size: int | Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        act: str = "gelu_tanh",
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        padding: str = "same",
        project_shortcuts: bool = False,
        scale_by: str = "head",
        representation_size: int | None = None,
        stem_bias: bool = True,
        head_bias: bool = True,
        norm_eps: float = 1e-5,
        bn_eps: float = 1e-3,
    ) -> None:
        check_choice("padding", padding, ("same", "symmetric"))
        check_choice("scale_by", scale_by, ("head", "dim"))
        stride = 2 ** (len(depth) + 1)
        size, window = _sizes(image_size, window_size, stride)
        dims = [dim * 2**stage for stage in range(len(depth))]
        if dim % dim_head:
            raise ValueError(f"width {dim} is not a multiple of heads of width {dim_head}")
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=[4 * 2**stage for stage in range(len(depth))],
            channels=channels,
            size_multiple=(stride * window[0], stride * window[1]),
        )
        self.window = window
        self.head_bias = head_bias
        norm = partial(nn.BatchNorm2d, eps=bn_eps)
        halve = partial(
            HalvingConv if padding == "same" else nn.Conv2d,
            kernel_size=3,
            stride=2,
            padding=0 if padding == "same" else 1,
        )
        stem_dim = dim_conv_stem or dim
        self.stem = OnMap(
            halve(channels, stem_dim, bias=stem_bias),
            norm(stem_dim),
            activation(act),
            nn.Conv2d(stem_dim, stem_dim, 3, padding=1),
        )

        def conv(before: int, width: int, strided: bool, drop: float) -> MBConv:
            def depthwise(hidden: int) -> nn.Conv2d:
                make = halve if strided else partial(nn.Conv2d, kernel_size=3, padding=1)
                return make(hidden, hidden, groups=hidden, bias=False)

            bottleneck = InvertedBottleneck(
                before,
                width,
                int(width * mbconv_expansion_rate),
                depthwise=depthwise,
                norm=norm,
                act=act,
                excite=partial(SqueezeExcite, hidden_dim=int(width * mbconv_shrinkage_rate)),
                norm_out=False,
            )
            shortcut: list[nn.Module] = []
            if strided:
                pool = nn.AvgPool2d(2) if padding == "same" else nn.AvgPool2d(3, stride=2, padding=1)
                shortcut.append(OnMap(pool))
            if before != width or (strided and project_shortcuts):
                shortcut.append(Linear(before, width))
            tail = make_tail(width, drop_path=drop)
            return MBConv(bottleneck, OnMap(norm(before)), tail, nn.Sequential(*shortcut))

        def transformer(width: int, drop: float, spread: bool) -> Block:
            heads = width_of_head(width, dim_head)
            attention = Attention(
                width,
                heads=heads,
                dim_head=dim_head,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout, width**-0.5 if scale_by == "dim" else None),
            )
            partition = grid_groups(window) if spread else windows(window)
            feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act)
            layer_norm = partial(nn.LayerNorm, width, eps=norm_eps)
            tail = partial(make_tail, width, drop_path=drop)
            return Block(
                Residual(
                    GroupAttention(attention, partition, RelativeBias(window, heads)), layer_norm(), tail()
                ),
                Residual(feedforward, layer_norm(), tail()),
            )

        def block(stage: int, layer: int) -> MaxViTBlock:
            width, first = dims[stage], layer == 0
            before = width if layer else [stem_dim, *dims][stage]
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            return MaxViTBlock(
                conv(before, width, first, drop),
                transformer(width, drop, spread=False),
                transformer(width, drop, spread=True),
            )

        self.stages = nn.ModuleList(
            Stage(nn.Identity(), Encoder(partial(block, stage), depth=depth[stage]))
            for stage in range(len(depth))
        )
        init_convs(self)
        self.head_width = representation_size or dims[-1]
        self.fc_norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        hidden = Linear(dims[-1], self.head_width)
        init_xavier(hidden)
        self.pre_logits = nn.Sequential(hidden, nn.Tanh())
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, without a bias where the model has none there."""
        super().reset_classifier(num_classes, global_pool)
        if not self.head_bias and isinstance(self.head, nn.Linear):
            self.head.register_parameter("bias", None)


def _sizes(
    image_size: int | Sequence[int] | None, window_size: int | Sequence[int] | None, stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Give the size of the image and of a window; either follows from the other.

    Raises:
        ValueError: where the window is empty.
    """
    if window_size is None:
        size = pair(image_size or 7 * stride)
        window = (size[0] // stride, size[1] // stride)
    else:
        window = pair(window_size)
        size = pair(image_size or (stride * window[0], stride * window[1]))
    if min(window) < 1:
        raise ValueError(
            f"a window has at least one cell of {stride} pixels, got {window} for image size {size}"
        )
    return size, window
