"""Convolutions on maps whose channels come last, as linear layers have them; MBConv and ConvNeXt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, DropPath, FeedForward, activation, fx_leaf, layer, make_scale
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import Option, OptionLike, read_option
from vit_pytorch.layers.tokens import drop_bias

# How a strided convolution is padded, and what halves a map in its place: "same" pads as TensorFlow does and
# takes the mean of 2 x 2 cells; the others pad on all sides and take the mean of 3 x 3 cells ("symmetric"),
# the mean of 2 x 2 ("mixed") or the maximum of 3 x 3 ("max").
PADDINGS = ("same", "symmetric", "mixed", "max")
SHRINKAGE = 0.25


def pool_map(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d"]:
    """Return the mean of a channels-first map; the gradient lies in memory with its channels last."""
    return x.permute(0, 2, 3, 1).mean(dim=(1, 2))


@fx_leaf
def stretch(x: Float[Tensor, "b h w d"], size: Sequence[int]) -> Float[Tensor, "b y x d"]:
    """Resize a map bilinearly, if its size is another."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    resized = F.interpolate(x.permute(0, 3, 1, 2), tuple(size), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


class OnMap(nn.Module):
    """Apply a module for channels-first maps to a channels-last one; both permutations are views.

    What the module is given lies in memory with its channels last, the order that convolutions of the
    processor are fastest in.

    Args:
        layers: modules for channels-first maps, applied in turn.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Return the map, its channels last again."""
        return self.layers(x.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MapNorm(nn.LayerNorm):
    """LayerNorm of the channels of a channels-first map."""

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Normalise every cell."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapGroupNorm(nn.GroupNorm):
    """Norm of all cells and channels of a channels-last map together (PoolFormer, arXiv:2111.11418, 3.2).

    Args:
        bias: use a bias.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(1, dim, eps=eps)
        if not bias:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Normalise every map."""
        x = x.permute(0, 3, 1, 2)
        # Not by `nn.functional`, whose check of sizes a trace would keep.
        x = torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return x.permute(0, 2, 3, 1)


class TokenNorm(nn.BatchNorm1d):
    """Batch norm of vectors; in training, a single one, without statistics, is served by earlier batches'."""

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """Norm each channel over the batch."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var, self.weight, self.bias
        of_batch = has_statistics(x, self.training)
        return F.batch_norm(x, *statistics, of_batch, self.momentum or 0.0, self.eps)


@fx_leaf
def has_statistics(x: Float[Tensor, "b d"], training: bool) -> bool:
    """Return whether a batch is normed by its own statistics: in training, if it is more than one vector."""
    return training and x.shape[0] > 1


class MapBatchNorm(TokenNorm):
    """Batch norm of a channels-last map."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Norm each channel over the cells of the batch."""
        return super().forward(x.flatten(0, -2)).view_as(x)


class ConvNorm(nn.Sequential):
    """A convolution, batch norm, and an activation, on a channels-first map.

    Args:
        kernel: side of the kernel; odd, and padded to keep the size but for the stride.
        stride: distance of the kernel's places.
        groups: parts of the channels that are convolved apart.
        eps: epsilon of the batch norm.
        bias: use a bias for the convolution.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        act: str | None = None,
        eps: float = 1e-5,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(out_dim, eps=eps)
        if act is not None:
            self.act = activation(act)

    def fuse(self) -> None:
        """Fold the batch norm into the convolution, for inference alone; a second time changes nothing."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval()), nn.Identity()


class LinearNorm(nn.Module):
    """A linear layer, and batch norm over all tokens or cells.

    Args:
        bias: use a bias for the linear layer.
        gain: initial value of the batch norm's factors; 0 for a residual branch that starts as nothing.
    """

    def __init__(self, dim: int, out_dim: int, *, bias: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, out_dim, bias=bias)
        self.norm: nn.Module = TokenNorm(out_dim)
        init_xavier(self.linear)
        nn.init.constant_(self.norm.weight, gain)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Transform each token on its own."""
        x = self.linear(x)
        return self.norm(x.flatten(0, -2)).view_as(x)

    def fuse(self) -> None:
        """Fold the batch norm into the linear layer, for inference only; a second time changes nothing."""
        if isinstance(self.norm, TokenNorm):
            self.linear, self.norm = fuse_linear_bn_eval(self.linear.eval(), self.norm.eval()), nn.Identity()


class FeedForwardNorm(nn.Module):
    """Two linear layers, each with batch norm, and an activation between them (LeViT, arXiv:2104.01136, 4.2).

    Args:
        bias: use biases for the linear layers.
        gain: initial value of the last batch norm's factors.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        act: str = "hardswish",
        dropout: float = 0.0,
        bias: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.to_hidden = LinearNorm(dim, hidden_dim, bias=bias)
        self.act = activation(act)
        self.dropout = nn.Dropout(dropout)
        self.to_out = LinearNorm(hidden_dim, dim, bias=bias, gain=gain)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform each cell on its own."""
        return self.dropout(self.to_out(self.dropout(self.act(self.to_hidden(x)))))


class NormHead(nn.Module):
    """A linear classifier after batch norm (LeViT, arXiv:2104.01136, section 4.2)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_classes)
        self.norm: nn.Module = TokenNorm(dim)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Return the logits."""
        return self.linear(self.norm(x))

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the batch norm into the layer, for inference only; a second time changes nothing."""
        if isinstance(self.norm, TokenNorm):
            # In inference the norm is affine: its value at 0, and for each channel a slope.
            ends = torch.stack([torch.zeros_like(self.norm.weight), torch.ones_like(self.norm.weight)])
            shift, top = self.norm.eval()(ends)
            self.linear.bias.add_(self.linear.weight @ shift)
            self.linear.weight.mul_(top - shift)
            self.norm = nn.Identity()


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all (Hu et al. 2017, arXiv:1709.01507).

    Args:
        hard: whether the gate is the hard sigmoid, relu6(x + 3) / 6.
        bias: use biases.
    """

    @checks_arguments
    def __init__(
        self, dim: int, hidden_dim: int, *, act: str = "silu", hard: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, hidden_dim, bias=bias)
        self.act = activation(act)
        self.excite = nn.Linear(hidden_dim, dim, bias=bias)
        self.gate = nn.Hardsigmoid() if hard else nn.Sigmoid()

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Scale the channels of a channels-first map."""
        gate = self.gate(self.excite(self.act(self.squeeze(pool_map(x)))))
        return x * gate[:, :, None, None]


class PositionGenerator(nn.Module):
    """Add a depth-wise convolution of the map, which tells cells their places (CPVT, arXiv:2102.10882, 3.2).

    Args:
        kernel: side of the kernel, odd.

    Raises:
        ValueError: where the kernel is not odd.
    """

    def __init__(self, dim: int, kernel: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel that keeps the size is odd, got {kernel}")
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Add the convolution to the map."""
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PositionedBlock(Block):
    """A block followed by a positional encoding generator (PEG; Twins, arXiv:2104.13840, section 3.1).

    Args:
        positions: acts on the map after the block.
    """

    def __init__(
        self, dim: int, attention: nn.Module, feedforward: nn.Module, *, positions: nn.Module, **options: Any
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.positions = positions

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Apply both residual branches, then the generator."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        return self.positions(x + self.drop_path(self.scale2(self.feedforward(self.norm2(x)))))


class MeanOfNeighbours(nn.Module):
    """The mean of a cell's neighbourhood, less the cell itself (PoolFormer, arXiv:2111.11418, eq. 4).

    Cells outside the map do not count.

    Args:
        size: side of the neighbourhood, in cells, odd.

    Raises:
        ValueError: if the side is even.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"pool_size must be odd, got {size}")
        self.pool = OnMap(nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False))

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Return by how much the neighbourhood differs from each cell."""
        return self.pool(x) - x


class InvertedBottleneck(nn.Module):
    """Widen each cell, convolve channel by channel, narrow again (MobileNetV2, arXiv:1801.04381, 3.3).

    The linear layers are that paper's 1 x 1 convolutions, on a map whose channels are last.

    Args:
        depthwise: makes the convolution from the width.
        norm: makes a batch norm from a width; one follows each of the two layers before the last.
        excite: where given, makes a gate of the channels from the width, which stands before the last layer
            (`SqueezeExcite` in MBConv, Tan et al. 2018, arXiv:1807.11626).
        norm_out: whether a norm follows the last layer, too, which has a bias otherwise.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        out_dim: int,
        hidden_dim: int,
        *,
        depthwise: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: str = "silu",
        excite: Callable[[int], nn.Module] | None = None,
        norm_out: bool = True,
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden_dim, bias=False)
        self.depthwise = OnMap(
            norm(hidden_dim),
            activation(act),
            depthwise(hidden_dim),
            norm(hidden_dim),
            activation(act),
            *([] if excite is None else [excite(hidden_dim)]),
        )
        self.project = nn.Linear(hidden_dim, out_dim, bias=not norm_out)
        self.norm = OnMap(norm(out_dim)) if norm_out else nn.Identity()
        for linear in (self.expand, self.project):
            nn.init.normal_(linear.weight, std=(2 / linear.out_features) ** 0.5)
        if not norm_out:
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        return self.norm(self.project(self.depthwise(self.expand(x))))


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


def halving_pool(padding: str) -> nn.Module:
    """Build what halves a map without weights; see `PADDINGS`."""
    if padding == "max":
        return nn.MaxPool2d(3, stride=2, padding=1)
    return nn.AvgPool2d(3, stride=2, padding=1) if padding == "symmetric" else nn.AvgPool2d(2)


def conv_stem(
    channels: int,
    dims: Sequence[int],
    *,
    padding: str,
    norm: Callable[[int], nn.Module],
    act: str,
    bias: Sequence[bool],
) -> OnMap:
    """Build two 3 x 3 convolutions, the first of which halves the image.

    Args:
        dims: channels of each.
        bias: use a bias for each.
    """
    return OnMap(
        halving_conv(channels, dims[0], padding=padding, bias=bias[0]),
        norm(dims[0]),
        activation(act),
        nn.Conv2d(dims[0], dims[1], 3, padding=1, bias=bias[1]),
    )


def quartering_stem(channels: int, dim: int, *, act: str) -> OnMap:
    """Build two convolutions with batch norm that give the first stage's map, a quarter of the image's sides.

    Raises:
        ValueError: if `dim` is odd, half of which are the channels between them.
    """
    if dim % 2:
        raise ValueError(f"dim of the first stage must be even, got {dim}")
    conv = partial(ConvNorm, stride=2, bias=True, act=act)
    return OnMap(conv(channels, dim // 2), conv(dim // 2, dim))


def narrow_stem(channels: int, dim: int) -> OnMap:
    """Build four convolutions with batch norm, each of which halves the image, and doubles the channels.

    Raises:
        ValueError: if `dim`, of the last, is no multiple of 8.
    """
    if dim % 8:
        raise ValueError(f"dim of the first stage must be a multiple of 8, got {dim}")
    widths = [channels, dim // 8, dim // 4, dim // 2, dim]
    acts = ("relu", "relu", "relu", None)
    return OnMap(*(ConvNorm(*widths[i : i + 2], stride=2, act=act) for i, act in enumerate(acts)))


def subsample(dim: int, out_dim: int) -> InvertedBottleneck:
    """Build an inverted bottleneck with squeeze-and-excitation that halves a map.

    EfficientViT, arXiv:2305.07027, section 3.
    """
    conv = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1, bias=False)
    return InvertedBottleneck(
        dim,
        out_dim,
        4 * dim,
        depthwise=lambda width: conv(width, width, groups=width),
        act="relu",
        excite=partial(SqueezeExcite, hidden_dim=max(8, (dim + 4) // 8 * 8), act="relu"),
    )


class LocalMix(nn.Module):
    """A depth-wise convolution and a feed-forward, each added to its input.

    Args:
        gain: initial value of the factors of the convolution's batch norm.
    """

    def __init__(self, dim: int, feedforward: nn.Module, *, gain: float, drop_path: float) -> None:
        super().__init__()
        conv = ConvNorm(dim, dim, groups=dim)
        nn.init.constant_(conv.norm.weight, gain)  # type: ignore[arg-type]
        self.conv = OnMap(conv)
        self.feedforward = feedforward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        x = x + self.drop_path(self.conv(x))
        return x + self.drop_path(self.feedforward(x))


class MBConv(nn.Module):
    """A pre-norm inverted bottleneck around which the map passes, pooled if the block halves it.

    MaxViT, arXiv:2204.01697, section 3.3 and appendix A.1; CoAtNet, arXiv:2106.04803, appendix A.1.

    Args:
        norm: acts on the map first.
        bottleneck: the residual branch.
        shortcut: acts on what passes around it.
    """

    def __init__(
        self, norm: nn.Module, bottleneck: nn.Module, shortcut: nn.Module, *, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = norm
        self.bottleneck = bottleneck
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = shortcut

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map, which a strided block halves."""
        return self.shortcut(x) + self.drop_path(self.bottleneck(self.norm(x)))


class ConvNeXt(nn.Module):
    """A convolution channel by channel, then a feed-forward of each cell (Liu et al. 2022, arXiv:2201.03545).

    Args:
        conv: the convolution.
        norm: acts on its output.
        feedforward: transforms every cell.
        scale: acts on the branch last.
        shortcut: acts on what passes around it.
    """

    def __init__(
        self,
        conv: nn.Module,
        norm: nn.Module,
        feedforward: nn.Module,
        scale: nn.Module,
        shortcut: nn.Module,
        *,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.feedforward = feedforward
        self.scale = scale
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shortcut = shortcut

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map, which a strided block halves."""
        branch = self.scale(self.feedforward(self.norm(self.conv(x))))
        return self.shortcut(x) + self.drop_path(branch)


@dataclass(frozen=True)
class MBConvs(Option):
    """Option: the convolutional blocks are MBConvs.

    Args:
        act: activation; default the model's.
        bias: use biases for the last layer and for the shortcut.
        expand_input: the hidden channels are a multiple of the input's, those of the squeeze-and-excitation
            of the hidden ones, instead of the output's both, as in timm's own variants.
        norm_act: an activation follows the first norm.
        gate_act: activation within the squeeze-and-excitation.
        gate_first: squeeze-and-excitation acts before the second norm instead of after its activation.
        pooled: the mean of 2 x 2 cells halves the map, before the expansion, instead of the convolution.
    """

    kind: ClassVar[str] = "mbconv"
    act: str | None = None
    bias: bool = True
    expand_input: bool = False
    norm_act: bool = False
    gate_act: str = "silu"
    gate_first: bool = False
    pooled: bool = False

    def norm(self, eps: float) -> Callable[[int], nn.Module]:
        """Return what builds a norm of channels-first maps."""
        return partial(nn.BatchNorm2d, eps=eps)

    def block(
        self,
        dim: int,
        out_dim: int,
        *,
        halve: bool,
        expansion: float,
        shrinkage: float,
        act: str,
        padding: str,
        project: bool,
        eps: float,
        drop_path: float,
    ) -> MBConv:
        """Build a block.

        Args:
            halve: halve the map.
            expansion: hidden channels, as a multiple.
            shrinkage: hidden dimension of the squeeze-and-excitation, as a multiple.
            act: the model's activation.
            padding: one of `PADDINGS`.
            project: project the pooled map even if its channels stay as many.
            eps: epsilon of the norms.
        """
        act = act if self.act is None else self.act
        norm = self.norm(eps)
        hidden = int((dim if self.expand_input else out_dim) * expansion)
        gate = int((hidden if self.expand_input else out_dim) * shrinkage)
        excite = partial(SqueezeExcite, hidden_dim=gate, act=self.gate_act)

        def depthwise(channels: int) -> nn.Module:
            conv = (
                halving_conv(channels, channels, padding=padding, groups=channels, bias=False)
                if halve and not self.pooled
                else nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            )
            return nn.Sequential(conv, excite(channels)) if self.gate_first else conv

        first = OnMap(
            norm(dim),
            *([activation(act)] if self.norm_act else []),
            *([nn.AvgPool2d(2)] if halve and self.pooled else []),
        )
        bottleneck = InvertedBottleneck(
            dim,
            out_dim,
            hidden,
            depthwise=depthwise,
            norm=norm,
            act=act,
            excite=None if self.gate_first else excite,
            norm_out=False,
        )
        drop_bias(bottleneck.project, self.bias)
        pool = halving_pool(padding) if halve else None
        way = shortcut(dim, out_dim, pool=pool, project=project and halve, bias=self.bias)
        return MBConv(first, bottleneck, way, drop_path=drop_path)


@dataclass(frozen=True)
class ConvNeXts(Option):
    """Option: the convolutional blocks are those of ConvNeXt, with kernels of 7 x 7 cells.

    Args:
        layer_scale: initial factors of the channels of the branch; None for none.
    """

    kind: ClassVar[str] = "convnext"
    act: ClassVar[str | None] = None
    layer_scale: float | None = 1e-6

    def norm(self, eps: float) -> Callable[[int], nn.Module]:
        """Return what builds a norm of channels-first maps."""
        return partial(MapNorm, eps=eps)

    def block(
        self,
        dim: int,
        out_dim: int,
        *,
        halve: bool,
        expansion: float,
        shrinkage: float,
        act: str,
        padding: str,
        project: bool,
        eps: float,
        drop_path: float,
    ) -> ConvNeXt:
        """Build a block; see `MBConvs.block`.

        Raises:
            ValueError: if settings are not the default that an MBConv alone has, if the map is padded or
                pooled in another way than "mixed", or if `dim` does not divide `out_dim`.
        """
        if (shrinkage, padding, project) != (SHRINKAGE, "mixed", False):
            raise ValueError(
                'ConvNeXt blocks have no squeeze-and-excitation, and halve maps as padding="mixed" does: '
                f"conv='convnext' needs mbconv_shrinkage_rate={SHRINKAGE} and no projection of shortcuts, "
                f"got padding={padding!r}, mbconv_shrinkage_rate={shrinkage}, project_shortcuts={project}"
            )
        if out_dim % dim:
            raise ValueError(
                f"a ConvNeXt block needs a multiple of its channels as output, got {dim} and {out_dim}"
            )
        conv = nn.Conv2d(dim, out_dim, 7, stride=2 if halve else 1, padding=3, groups=dim)
        pool = halving_pool(padding) if halve else None
        return ConvNeXt(
            OnMap(conv),
            nn.LayerNorm(out_dim, eps=eps),
            FeedForward(out_dim, int(out_dim * expansion), act=act),
            make_scale(out_dim, self.layer_scale),
            shortcut(dim, out_dim, pool=pool, project=False, bias=True),
            drop_path=drop_path,
        )


CONVS: dict[str, type[MBConvs] | type[ConvNeXts]] = {"mbconv": MBConvs, "convnext": ConvNeXts}


def conv_form(conv: OptionLike) -> MBConvs | ConvNeXts:
    """Return the form of convolutional blocks that an argument `conv` stands for."""
    return cast(MBConvs | ConvNeXts, read_option("conv", conv, CONVS))


def shortcut(dim: int, out_dim: int, *, pool: nn.Module | None, project: bool, bias: bool) -> nn.Sequential:
    """Build what acts on a map that passes around a block: a pooling, then a projection, where needed.

    Args:
        pool: halves the map; None to keep its size.
        project: project the map even if its channels stay as many.
        bias: use a bias for the projection.
    """
    parts = nn.Sequential()
    if pool is not None:
        parts.append(OnMap(pool))
    if dim != out_dim or project:
        parts.append(nn.Linear(dim, out_dim, bias=bias))
    return parts
