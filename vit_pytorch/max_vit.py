"""MaxViT: Multi-Axis Vision Transformer.

Z. Tu, H. Talebi, H. Zhang, F. Yang, P. Milanfar, A. Bovik, Y. Li 2022, arXiv:2204.01697.

A pyramid whose block lets a cell see near and far at linear cost: an MBConv, attention within windows of
neighbouring cells, then attention within groups that are spread over the whole map like a grid. Windows and
grids have as many cells in all stages, and learned biases for each offset.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import Attention, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, DropPath, FeedForward, activation, drop_path_rates, layer
from vit_pytorch.layers.conv import InvertedBottleneck, OnMap, SqueezeExcite
from vit_pytorch.layers.init import init_convs, init_xavier
from vit_pytorch.layers.options import check_choice, per_stage
from vit_pytorch.layers.patches import pair, to_ntuple
from vit_pytorch.layers.relative import LogBias, RelativeBias
from vit_pytorch.layers.tokens import drop_bias
from vit_pytorch.layers.windows import GroupAttention, Partition, grid_groups, windows

PADDINGS = ("same", "symmetric", "mixed")


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
        padding: "same" pads strided convolutions as TensorFlow does and pools 2 x 2 cells around them;
            "symmetric" pads them on all sides and pools 3 x 3, "mixed" pads on all sides and pools 2 x 2.
        project_shortcuts: project the pooled map even if its channels stay as many.
        scale_by: divide the attention scores by the root of the dimension of a "head", or of that of the
            stage, "dim".
        representation_size: dimension of the tanh layer before the classifier; default the last stage's.
        head_hidden: have that layer, and the norm after pooling; otherwise the norm acts on the last map.
        expand_input: the widths within an MBConv follow from its input's channels, and that of its
            squeeze-and-excitation from its hidden ones, as in timm's own variants.
        conv_act: activation of the convolutions; default `act`.
        conv_bias: use biases for the last layer of an MBConv and for its shortcut.
        relative_dim: hidden dimension of a network that computes the biases of offsets (`LogBias`); default a
            table.
        stem_bias: use a bias for the first convolution; "none" for no bias in the second, either.
        head_bias: use a bias for the classifier.
        bn_eps: epsilon of the batch norms.

    Raises:
        ValueError: if `dim` is not a multiple of `dim_head`, or the image not of the windows.
    """

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
        stem_bias: bool | Literal["none"] = True,
        head_bias: bool = True,
        norm_eps: float = 1e-5,
        bn_eps: float = 1e-3,
        head_hidden: bool = True,
        expand_input: bool = False,
        conv_act: str | None = None,
        conv_bias: bool = True,
        relative_dim: int | None = None,
        layer_scale: float | None = None,
    ) -> None:
        check_choice("padding", padding, PADDINGS)
        check_choice("scale_by", scale_by, ("head", "dim"))
        stride = 2 ** (len(depth) + 1)
        size, window = _sizes(image_size, window_size, stride)
        dims = per_stage("dim", dim, len(depth))
        stem_dims = to_ntuple(dims[0] if dim_conv_stem is None else dim_conv_stem, 2)
        conv_act = act if conv_act is None else conv_act
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
        norm = partial(nn.BatchNorm2d, eps=bn_eps)
        self.stem = OnMap(
            halving_conv(channels, stem_dims[0], padding=padding, bias=stem_bias is True),
            norm(stem_dims[0]),
            activation(conv_act),
            nn.Conv2d(stem_dims[0], stem_dims[1], 3, padding=1, bias=stem_bias != "none"),
        )

        def transformer(width: int, partition: Partition, drop: float) -> Block:
            heads = head_dim(width, dim_head)
            kernel = partial(FusedAttention, attn_dropout, width**-0.5 if scale_by == "dim" else None)
            attention = Attention(width, heads=heads, dim_head=dim_head, dropout=dropout, kernel=kernel)
            return Block(
                width,
                GroupAttention(
                    attention,
                    partition,
                    RelativeBias(window, heads)
                    if relative_dim is None
                    else LogBias(window, heads, dim=relative_dim),
                ),
                FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act),
                norm=partial(nn.LayerNorm, eps=norm_eps),
                layer_scale=layer_scale,
                drop_path=drop,
            )

        before = stem_dims[1]
        for width, rates in zip(dims, drop_path_rates(drop_path, depth), strict=True):
            blocks = []
            for index, drop in enumerate(rates):
                hidden = int((before if expand_input else width) * mbconv_expansion_rate)
                conv = MBConv(
                    before,
                    width,
                    hidden_dim=hidden,
                    gate_dim=int((hidden if expand_input else width) * mbconv_shrinkage_rate),
                    norm=norm,
                    act=conv_act,
                    padding=padding if index == 0 else None,
                    project=project_shortcuts and index == 0,
                    drop_path=drop,
                )
                if not conv_bias:
                    for linear in (conv.bottleneck.project, *conv.shortcut):
                        drop_bias(linear, False)
                local, spread = (
                    transformer(width, part, drop) for part in (windows(window), grid_groups(window))
                )
                blocks.append(MaxViTBlock(conv, local, spread))
                before = width
            self.stages.append(Stage(nn.Identity(), blocks))
        init_convs(self)
        last_norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        if head_hidden:
            self.classifier_dim = representation_size or dims[-1]
            self.fc_norm = last_norm
            layer = nn.Linear(dims[-1], self.classifier_dim)
            init_xavier(layer)
            self.pre_logits = nn.Sequential(layer, nn.Tanh())
        else:
            self.norm = last_norm
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage; the norm follows the pooling, as a rule."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth: a stage is a layer, as in timm."""
        return {"stem": r"^stem\.", "blocks": [(r"^stages\.(\d+)", None), (r"^norm\.", (99999,))]}

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, without a bias if the model has none there; the identity for no classes."""
        return drop_bias(super().make_head(num_classes), self.head_bias)


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


class MBConv(nn.Module):
    """A pre-norm inverted bottleneck around which the map passes pooled (section 3.3 and appendix A.1).

    Args:
        gate_dim: hidden dimension of the squeeze-and-excitation.
        padding: how a strided convolution is padded, one of `PADDINGS`; None for a block that is not strided.
        project: project the pooled map even if its channels stay as many.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden_dim: int,
        gate_dim: int,
        norm: Callable[[int], nn.Module],
        act: str,
        padding: str | None,
        project: bool,
        drop_path: float,
    ) -> None:
        super().__init__()

        def depthwise(channels: int) -> nn.Module:
            if padding is not None:
                return halving_conv(channels, channels, padding=padding, groups=channels, bias=False)
            return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

        self.norm = OnMap(norm(dim))
        self.bottleneck = InvertedBottleneck(
            dim,
            out_dim,
            hidden_dim,
            depthwise=depthwise,
            norm=norm,
            act=act,
            excite=partial(SqueezeExcite, hidden_dim=gate_dim),
            norm_out=False,
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = nn.Sequential()
        if padding is not None:
            pool = nn.AvgPool2d(3, stride=2, padding=1) if padding == "symmetric" else nn.AvgPool2d(2)
            self.shortcut.append(OnMap(pool))
        if dim != out_dim or project:
            self.shortcut.append(nn.Linear(dim, out_dim))

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map, which a strided block halves."""
        return self.shortcut(x) + self.drop_path(self.bottleneck(self.norm(x)))


class HalvingConv(nn.Conv2d):
    """A 3 x 3 convolution of stride 2 that is padded below and on the right only, as TensorFlow does.

    For maps of even height and width. Padded by two cells on all sides, it computes a first row and column
    too many, which go; so the input, four times as large as the output, is not copied to be padded.
    """

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Halve the map."""
        halved = super().forward(x)[:, :, 1:, 1:]
        return halved.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def halving_conv(dim: int, out_dim: int, *, padding: str, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """Build a 3 x 3 convolution that halves a map, padded as in TensorFlow ("same") or on all sides."""
    if padding == "same":
        return HalvingConv(dim, out_dim, 3, stride=2, padding=2, groups=groups, bias=bias)
    return nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, groups=groups, bias=bias)


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
