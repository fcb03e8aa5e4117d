"""MaxViT: Multi-Axis Vision Transformer.

Z. Tu, H. Talebi, H. Zhang, F. Yang, P. Milanfar, A. Bovik, Y. Li 2022, arXiv:2204.01697.

A pyramid whose block lets a cell see near and far at linear cost: an MBConv, attention within windows of
neighbouring cells, then attention within groups that are spread over the whole map like a grid. Windows and
grids have as many cells in all stages, and learned biases for each offset.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, tanh_layer
from vit_pytorch.layers.conv import PADDINGS, SHRINKAGE, conv_form, conv_stem
from vit_pytorch.layers.init import init_convs
from vit_pytorch.layers.options import OptionLike, check_choice, per_stage
from vit_pytorch.layers.patches import pair, to_ntuple
from vit_pytorch.layers.relative import LogBias, RelativeBias
from vit_pytorch.layers.tokens import drop_bias
from vit_pytorch.layers.windows import GroupAttention, Partition, grid_groups, windows


class MaxViT(HierarchicalModel):
    """The multi-axis vision transformer.

    Height and width of an input are multiples of 32 windows, 224 pixels for windows of 7 cells: the map of
    the last stage, an eighth of the first one's, has to consist of whole windows.

    Args:
        dim: channels of the first stage, which double from stage to stage; or those of each stage.
        dim_conv_stem: channels of the convolutional stem, or of each of its two convolutions; default `dim`.
        window_size: cells of a window and of a grid, one number or (height, width); default a 32nd of
            `image_size`.
        mbconv_expansion_rate: hidden channels of an MBConv, as a multiple of its output channels.
        mbconv_shrinkage_rate: hidden dimension of its squeeze-and-excitation, as a multiple of its output
            channels.
        image_size: the customary input, one number or (height, width) in pixels; default 32 windows, or 224
            pixels.
        mlp_ratio: hidden dimension of the feed-forwards, as a multiple of the stage's.
        padding: "same" pads strided convolutions as TensorFlow does and pools 2 x 2 cells around them; the
            others pad them on all sides and pool 3 x 3 cells ("symmetric"), 2 x 2 ("mixed"), or take the
            maximum of 3 x 3 ("max").
        project_shortcuts: project the pooled map even if its channels stay as many.
        scale_by: divide the attention scores by the root of the dimension of a "head", or of that of the
            stage, "dim".
        representation_size: dimension of the tanh layer before the classifier; default the last stage's.
        head_hidden: have that layer, and the norm after pooling; otherwise the norm acts on the last map.
        conv: the convolutional blocks: "mbconv" (`MBConvs`) or, as in MaxxViT, "convnext" (`ConvNeXts`).
        attention: "in_turn" for attention within windows, then within grids; "grid" for that within grids
            only, as in MaxxViT-V2; "side_by_side" for both at once, each of which gives half of the channels
            (`SideBySide`), after two convolutional blocks.
        relative_dim: hidden dimension of a network that computes the biases of offsets (`LogBias`); default a
            table.
        stem_bias: use a bias for the first convolution; "none" for no bias in the second, either.
        head_bias: use a bias for the classifier.
        bn_eps: epsilon of the norms of convolutions.

    Raises:
        ValueError: if `dim` is not a multiple of `dim_head`, or the image not of the windows.
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
        window_size: int | Sequence[int] | None = None,
        mbconv_expansion_rate: float = 4.0,
        mbconv_shrinkage_rate: float = SHRINKAGE,
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
        stem_bias: bool | Literal["none"] = True,
        head_bias: bool = True,
        norm_eps: float = 1e-5,
        bn_eps: float = 1e-3,
        head_hidden: bool = True,
        conv: OptionLike = "mbconv",
        attention: Literal["in_turn", "grid", "side_by_side"] = "in_turn",
        relative_dim: int | None = None,
        layer_scale: float | None = None,
    ) -> None:
        check_choice("padding", padding, PADDINGS)
        check_choice("scale_by", scale_by, ("head", "dim"))
        stride = 2 ** (len(depth) + 1)
        size, window = _sizes(image_size, window_size, stride)
        dims = per_stage("dim", dim, len(depth))
        stem_dims = to_ntuple(dims[0] if dim_conv_stem is None else dim_conv_stem, 2)
        form = conv_form(conv)
        if not head_hidden and representation_size is not None:
            raise ValueError(
                f"representation_size is that of a hidden layer: it needs head_hidden=True, "
                f"got {representation_size}"
            )
        if any(width % dim_head for width in dims):
            raise ValueError(f"dim must be a multiple of dim_head, got dim={dim} and dim_head={dim_head}")
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
        self.stem = conv_stem(
            channels,
            stem_dims,
            padding=padding,
            norm=form.norm(bn_eps),
            act=form.act or act,
            bias=(stem_bias is True, stem_bias != "none"),
        )
        conv_block = partial(
            form.block,
            expansion=mbconv_expansion_rate,
            shrinkage=mbconv_shrinkage_rate,
            act=act,
            padding=padding,
            project=project_shortcuts,
            eps=bn_eps,
        )

        def groups(width: int, partition: Partition, out_dim: int) -> GroupAttention:
            heads = head_dim(width, dim_head)
            kernel = partial(FusedAttention, attn_dropout, width**-0.5 if scale_by == "dim" else None)
            return GroupAttention(
                Attention(
                    width, heads=heads, dim_head=dim_head, dropout=dropout, kernel=kernel, out_dim=out_dim
                ),
                partition,
                RelativeBias(window, heads)
                if relative_dim is None
                else LogBias(window, heads, dim=relative_dim),
            )

        def transformer(width: int, mixer: nn.Module, drop: float) -> Block:
            return Block(
                width,
                mixer,
                FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act),
                norm=partial(nn.LayerNorm, eps=norm_eps),
                layer_scale=layer_scale,
                drop_path=drop,
            )

        def block(dim: int, width: int, halve: bool, drop: float) -> MaxViTBlock:
            conv: nn.Module = conv_block(dim, width, halve=halve, drop_path=drop)
            local: nn.Module = nn.Identity()
            near, far = windows(window), grid_groups(window)
            if attention == "side_by_side":
                conv = nn.Sequential(conv, conv_block(width, width, halve=False, drop_path=drop))
                spread = SideBySide(groups(width, near, width // 2), groups(width, far, width // 2))
                return MaxViTBlock(conv, local, transformer(width, spread, drop))
            if attention == "in_turn":
                local = transformer(width, groups(width, near, width), drop)
            return MaxViTBlock(conv, local, transformer(width, groups(width, far, width), drop))

        before = stem_dims[1]
        for width, rates in zip(dims, drop_path_rates(drop_path, depth), strict=True):
            blocks = []
            for index, drop in enumerate(rates):
                blocks.append(block(before, width, index == 0, drop))
                before = width
            self.stages.append(Stage(nn.Identity(), blocks))
        init_convs(self)
        last_norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        if head_hidden:
            self.classifier_dim = representation_size or dims[-1]
            self.fc_norm = last_norm
            self.pre_logits = tanh_layer(dims[-1], self.classifier_dim)
        else:
            self.norm = last_norm
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage; the norm follows the pooling, as a rule."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, without a bias if the model has none there; the identity for no classes."""
        return drop_bias(super().make_head(num_classes), self.head_bias)


class MaxViTBlock(nn.Module):
    """Convolution, attention within windows, attention within grids (figure 2).

    Args:
        conv: the convolution.
        window: a transformer block whose attention is local, or the identity.
        grid: one whose attention is spread over the map, or of both kinds.
    """

    def __init__(self, conv: nn.Module, window: nn.Module, grid: Block) -> None:
        super().__init__()
        self.conv = conv
        self.window = window
        self.grid = grid

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        return self.grid(self.window(self.conv(x)))


class SideBySide(nn.Module):
    """Attention within windows and within grids of the same map, each of which gives half of the channels.

    Args:
        window: attention that is local.
        grid: attention that is spread over the map.
    """

    def __init__(self, window: GroupAttention, grid: GroupAttention) -> None:
        super().__init__()
        self.window = window
        self.grid = grid

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to those of its window, and to those of its grid."""
        return torch.cat([self.window(x, inputs), self.grid(x, inputs)], dim=-1)


def _sizes(
    image_size: int | Sequence[int] | None, window_size: int | Sequence[int] | None, stride: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the size of the image and of a window; either follows from the other.

    Raises:
        ValueError: if the window is empty.
    """
    if window_size is None:
        size = pair(image_size or 7 * stride)
        window = (size[0] // stride, size[1] // stride)
    else:
        window = pair(window_size)
        size = pair(image_size or (stride * window[0], stride * window[1]))
    if min(window) < 1:
        raise ValueError(
            f"a window must be at least one cell of {stride} pixels, got {window} for image size {size}"
        )
    return size, window
