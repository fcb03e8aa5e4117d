"""An Image is Worth 16x16 Words: the hybrid architecture.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The transformer's input is the feature map of a convolutional network instead of the image: its cells, or
patches of them, are the tokens (section 3.1). The paper's network is Big Transfer's ResNet
(arXiv:1912.11370), with group norm and standardised weights (arXiv:1903.10520).

Family: plain
Differs from the paper: nothing; any other network that gives a map can be passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import Attention, BlockInputs, FusedAttention
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rate, fx_leaf, is_tracing, static_size
from vit_pytorch.layers.init import init_convs, init_linears
from vit_pytorch.layers.options import OptionLike, check_choice
from vit_pytorch.layers.patches import PatchDropout, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.position_options import POSITIONS, attention_position, position_inputs, read_positions
from vit_pytorch.layers.relative import Relative, TokenBias
from vit_pytorch.layers.rotary import AxialRotary, MixedRotary, RotaryOption
from vit_pytorch.layers.tokens import AttentionPool
from vit_pytorch.layers.whitened import WhitenedNet
from vit_pytorch.vit import UNDECAYED, Pool


class StandardisedConv(nn.Conv2d):
    """A convolution without bias whose kernels have mean 0 and variance 1, each output channel by itself.

    Padding is TensorFlow's "SAME": the size is divided by the stride, rounded up, and an odd cell of padding
    comes after the map.

    Args:
        stride: distance of the kernel's places.
    """

    def __init__(
        self, dim: int, out_dim: int, kernel: int = 1, *, stride: int = 1, eps: float = 1e-8
    ) -> None:
        super().__init__(dim, out_dim, kernel, stride, bias=False)
        self.eps = eps

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Convolve a map."""
        weight = F.layer_norm(self.weight, self.weight.shape[1:], eps=self.eps)
        return F.conv2d(_pad_same(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


@fx_leaf
def _pad_same(
    x: Float[Tensor, "b c h w"], kernel: int, stride: int, value: float = 0.0
) -> Float[Tensor, "b c y x"]:
    """Pad a map so that a kernel has as many places as the stride divides the size, rounded up."""
    missing = [
        max((-(-extent // stride) - 1) * stride + kernel - extent, 0) for extent in static_size(x.shape[2:])
    ]
    top, left = (extent // 2 for extent in missing)
    if not any(missing):
        return x
    return F.pad(x, (left, missing[1] - left, top, missing[0] - top), value=value)


class Bottleneck(nn.Module):
    """Three convolutions next to a shortcut (He et al. 2015, arXiv:1512.03385, figure 5).

    Args:
        out_dim: channels that leave; a quarter of them are between the convolutions.
        stride: that of the middle convolution and of the shortcut.
        groups: groups of the norms.
    """

    def __init__(self, dim: int, out_dim: int, *, stride: int = 1, groups: int = 32) -> None:
        super().__init__()
        inner = out_dim // 4
        self.downsample = (
            nn.ModuleDict(
                {"conv": StandardisedConv(dim, out_dim, stride=stride), "norm": nn.GroupNorm(groups, out_dim)}
            )
            if stride > 1 or dim != out_dim
            else None
        )
        self.conv1 = StandardisedConv(dim, inner)
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv2 = StandardisedConv(inner, inner, 3, stride=stride)
        self.norm2 = nn.GroupNorm(groups, inner)
        self.conv3 = StandardisedConv(inner, out_dim)
        self.norm3 = nn.GroupNorm(groups, out_dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map after the block."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample["norm"](self.downsample["conv"](x))
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(shortcut + self.norm3(self.conv3(x)))


class ResNetStem(nn.Module):
    """The convolution and the pooling that Big Transfer's ResNet begins with, each of which halves the map.

    Args:
        width: channels of the map; a multiple of 32.

    Attributes:
        reduction: pixels along a side of the map's cell.
        num_features: channels of the map.

    Raises:
        ValueError: if the width does not divide into the norm's 32 groups.
    """

    def __init__(self, channels: int, *, width: int = 64) -> None:
        super().__init__()
        if width % 32 or width < 32:
            raise ValueError(f"the width of a ResNet must be a multiple of 32, got {width}")
        self.conv = StandardisedConv(channels, width, 7, stride=2)
        self.norm = nn.GroupNorm(32, width)
        self.reduction = 4
        self.num_features = width

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map after the pooling."""
        x = F.relu(self.norm(self.conv(images)))
        return F.max_pool2d(_pad_same(x, 3, 2, value=-torch.inf), 3, 2)


class ResNet(nn.Module):
    """Big Transfer's ResNet without its head, of bottlenecks whose norms follow the convolutions.

    Args:
        depths: blocks in each stage; each stage but the first halves the map and doubles the width.
        width: channels of the stem, of which a stage's first has four times as many; a multiple of 32.

    Attributes:
        reduction: pixels along a side of the last map's cell.
        num_features: channels of the last map.

    Raises:
        ValueError: if there is no stage, or the width does not divide into the norms' 32 groups.
    """

    def __init__(self, channels: int, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        _check_depths(depths)
        self.stem = ResNetStem(channels, width=width)
        dims = [width, *(4 * width * 2**stage for stage in range(len(depths)))]
        self.stages = nn.ModuleList(
            nn.ModuleDict(
                {
                    "blocks": nn.Sequential(
                        *(
                            Bottleneck(
                                dim if block == 0 else out_dim,
                                out_dim,
                                stride=2 if block == 0 and stage > 0 else 1,
                            )
                            for block in range(depth)
                        )
                    )
                }
            )
            for stage, (depth, dim, out_dim) in enumerate(zip(depths, dims, dims[1:], strict=False))
        )
        self.reduction = 2 ** (len(depths) + 1)
        self.num_features = dims[-1]
        init_convs(self)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage."""
        x = self.stem(images)
        for stage in self.stages:
            x = stage["blocks"](x)  # type: ignore[index]
        return x


class BottleneckD(nn.Module):
    """Three convolutions with batch norm; the shortcut pools, then projects (arXiv:1812.01187, figure 2).

    Args:
        out_dim: channels that leave; a quarter of them are between the convolutions.
        stride: that of the middle convolution and of the shortcut.
    """

    def __init__(self, dim: int, out_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        inner = out_dim // 4
        self.conv1 = nn.Conv2d(dim, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_dim, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_dim)
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        self.downsample = (
            nn.Sequential(pool, nn.Conv2d(dim, out_dim, 1, bias=False), nn.BatchNorm2d(out_dim))
            if stride > 1 or dim != out_dim
            else nn.Identity()
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map after the block."""
        shortcut = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(shortcut + self.bn3(self.conv3(x)))


class ResNetD(nn.Sequential):
    """A ResNet with batch norm and a stem of three convolutions (T. He et al. 2018, arXiv:1812.01187).

    Args:
        depths: blocks in each stage; each stage but the first halves the map and doubles the width.
        width: channels of the stem, of which a stage's first has four times as many; even.

    Attributes:
        reduction: pixels along a side of the last map's cell.
        num_features: channels of the last map.

    Raises:
        ValueError: if there is no stage, or one without blocks.
    """

    def __init__(self, channels: int, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        _check_depths(depths)
        half = width // 2
        self.conv1 = nn.Sequential(
            nn.Conv2d(channels, half, 3, 2, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, width, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = width
        for stage, depth in enumerate(depths):
            blocks = nn.Sequential()
            for index in range(depth):
                out_dim = 4 * width * 2**stage
                blocks.append(BottleneckD(before, out_dim, stride=2 if index == 0 and stage > 0 else 1))
                before = out_dim
            self.add_module(f"layer{stage + 1}", blocks)
        self.num_features = before
        self.reduction = 2 ** (len(depths) + 1)
        init_convs(self)


def _check_depths(depths: Sequence[int]) -> None:
    if not depths or min(depths) < 1:
        raise ValueError(f"a ResNet must have stages of at least one block, got {tuple(depths)} blocks")


class PatchConvs(nn.Sequential):
    """Three convolutions whose strides are their kernels, 4, 2 and 2: each patch is embedded by itself.

    The first two have batch norm and GELU (MobileCLIP's ViT, P. K. A. Vasu et al. 2023, arXiv:2311.17049).

    Args:
        dim: channels of the map.
        width: channels between the convolutions.

    Attributes:
        reduction: pixels along a side of the map's cell.
        num_features: channels of the map.
    """

    def __init__(self, channels: int, dim: int, *, width: int) -> None:
        super().__init__()
        for before, kernel in ((channels, 4), (width, 2)):
            conv = nn.Conv2d(before, width, kernel, kernel, bias=False)
            self.append(nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(width), act=nn.GELU())))
        self.append(nn.Sequential(OrderedDict(conv=nn.Conv2d(width, dim, 2, 2))))
        self.reduction = 16
        self.num_features = dim
        init_convs(self)


NETWORKS = ("big_transfer", "d", "whitened", "patches")


def build_network(
    form: str, channels: int, depths: Sequence[int], *, width: int, dim: int
) -> ResNet | ResNetStem | ResNetD | WhitenedNet | PatchConvs:
    """Build one of `NETWORKS`; of Big Transfer's only the stem if it is to have no blocks.

    Raises:
        ValueError: if there is none of that name, or `PatchConvs` is to have blocks.
    """
    check_choice("resnet", form, NETWORKS)
    if form == "patches":
        if depths:
            raise ValueError(
                f"resnet='patches' has no blocks: it needs resnet_depths=(), got {tuple(depths)}"
            )
        return PatchConvs(channels, dim, width=width)
    if form == "d":
        return ResNetD(channels, depths, width=width)
    if form == "whitened":
        _check_depths(depths)
        return WhitenedNet(channels, depths, width=width)
    if depths:
        return ResNet(channels, depths, width=width)
    stem = ResNetStem(channels, width=width)
    init_convs(stem)
    return stem


class MapEmbed(nn.Module):
    """Embed patches of a network's feature map.

    Args:
        backbone: returns a map from images, or several maps as a sequence or a mapping, of which the last
            counts.
        grid: how the input is cut: its patches, in pixels, are cells of the tokens.
        patch: cells of the map along each axis of a patch.
        features: channels of the map.
        project: project patches; otherwise the map's cells are the tokens.
    """

    def __init__(
        self,
        backbone: nn.Module,
        grid: PatchGrid,
        patch: tuple[int, int],
        features: int,
        dim: int,
        *,
        project: bool = True,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.backbone = backbone
        self.proj = nn.Conv2d(features, dim, patch, patch) if project else nn.Identity()
        if isinstance(self.proj, nn.Conv2d) and self.proj.bias is not None:
            nn.init.trunc_normal_(self.proj.weight, std=(features * patch[0] * patch[1]) ** -0.5)
            nn.init.zeros_(self.proj.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid.

        Raises:
            ValueError: if the size of the network's map does not fit that of the images.
        """
        x = self.proj(last_map(self.backbone(images)))
        if not is_tracing(images) and tuple(x.shape[2:]) != self.grid.fit(images.shape[2:]):
            raise ValueError(
                f"the backbone gives {tuple(x.shape[2:])} patches for images of size "
                f"{tuple(images.shape[2:])}, expected {self.grid.fit(images.shape[2:])}"
            )
        return x.flatten(2).transpose(1, 2)


def last_map(output: Any) -> Float[Tensor, "b d h w"]:
    """Return the last map of a network's output: a map, a sequence of maps, or a mapping to maps.

    Raises:
        ValueError: if that is no map.
    """
    found: Any = output
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, (list, tuple)) and found:
        found = found[-1]
    if not is_tracing(found) and (not isinstance(found, Tensor) or found.ndim != 4):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"a backbone must return maps of shape (batch, channels, height, width), got {got}")
    return found


def _measure(backbone: nn.Module, channels: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Return the pixels of a cell of a network's map along each axis, and the map's channels."""
    if isinstance(backbone, (ResNet, ResNetStem, ResNetD, WhitenedNet, PatchConvs)):
        return (backbone.reduction, backbone.reduction), backbone.num_features
    like = next(backbone.parameters(), torch.empty(0))
    modes = {module: module.training for module in backbone.modules()}
    with torch.no_grad():
        found = last_map(backbone.eval()(like.new_zeros(1, channels, *size)))
    for module, mode in modes.items():
        module.training = mode
    rows, columns = found.shape[2:]
    if size[0] % rows or size[1] % columns:
        raise ValueError(f"image size must be a multiple of the backbone's map {(rows, columns)}, got {size}")
    return (size[0] // rows, size[1] // columns), found.shape[1]


class HybridViT(IsotropicModel):
    """The ViT on the feature map of a convolutional network.

    A module is nothing that a configuration file can hold: with a `backbone` that was passed in,
    `save_pretrained` refuses; save the state dict. The ResNet of its own is described by numbers.

    Args:
        patch_size: size of a patch in cells of the feature map, one number or (height, width).
        backbone: returns feature maps from images; default Big Transfer's ResNet. It is used as it is, not
            copied, and is called once, on one image of zeros, to see how large its map is.
        resnet_depths: blocks in each stage of the ResNet: (2, 2, 2, 2) for the R26, (3, 4, 6, 3) for the R50,
            (3, 4, 9) for the R50 whose last stage is moved to the one before it; () for its stem only.
        resnet_width: channels of the ResNet's stem.
        resnet: "big_transfer" (`ResNet`), "d" for one with batch norm and a deep stem (`ResNetD`), or
            "whitened" for one that learns small photographs in few epochs (`WhitenedNet`); or "patches" for
            three convolutions in its place, which embed patches of 16 pixels (`PatchConvs`).
        pool: see `ViT`.
        patch_dropout: share of the patches that is dropped in training, in [0, 1).
        positions: see `ViT`.

    Raises:
        ValueError: if sizes do not divide, options contradict each other, or the backbone returns no map.
    """

    option_kinds: ClassVar = {"positions": POSITIONS}
    undecayed = UNDECAYED

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int] = 1,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        backbone: nn.Module | None = None,
        resnet_depths: Sequence[int] = (3, 4, 6, 3),
        resnet_width: int = 64,
        resnet: str = "big_transfer",
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: Pool = "cls",
        dim_head: int = 64,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        patch_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        positions: OptionLike | Sequence[OptionLike] = "learned",
        class_token: bool = False,
        num_registers: int = 0,
        head_zero_init: bool = False,
    ) -> None:
        network = (
            build_network(resnet, channels, resnet_depths, width=resnet_width, dim=dim)
            if backbone is None
            else backbone
        )
        cell, features = _measure(network, channels, pair(image_size))
        patch = pair(patch_size)
        embeds = isinstance(network, PatchConvs)
        if embeds and patch != (1, 1):
            raise ValueError(
                f"resnet='patches' embeds patches itself: it needs patch_size=1, got {patch_size}"
            )
        grid = PatchGrid(pair(image_size), (patch[0] * cell[0], patch[1] * cell[1]))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        check_choice("pool", pool, ("cls", "mean", "cls+mean", "map"))
        added, inside = read_positions(positions)
        class_token = class_token or pool in ("cls", "cls+mean")
        norm = partial(nn.LayerNorm, eps=norm_eps)

        self.patch_embed = MapEmbed(network, grid, patch, features, dim, project=not embeds)
        self.prefix = PrefixTokens(dim, class_token=class_token, registers=num_registers)
        self.positions = added.build(grid.shape, dim, class_token=class_token, registers=num_registers)
        self.rotary: AxialRotary | MixedRotary | None = None
        self.relative: TokenBias | None = None
        relative = inside if isinstance(inside, Relative) else Relative()
        bias = partial(relative.build, grid.shape, heads, prefix=len(self.prefix) > 0)
        if isinstance(inside, RotaryOption):
            self.rotary = inside.build(grid.shape, dim_head, heads=heads, depth=depth)
        elif isinstance(inside, Relative) and not inside.per_layer:
            self.relative = bias()
        self.dropout = nn.Dropout(emb_dropout)
        self.patch_dropout = PatchDropout(patch_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                Attention(
                    dim,
                    heads=heads,
                    dim_head=dim_head,
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    position=attention_position(inside, index, bias),
                    kernel=partial(FusedAttention, attn_dropout),
                ),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, depth),
            )
            for index in range(depth)
        )
        self.norm = norm(dim)
        self.classifier_dim = 2 * dim if pool == "cls+mean" else dim
        self.attention_pool = (
            AttentionPool(dim, heads=heads, mlp_dim=mlp_dim, norm_eps=norm_eps) if pool == "map" else None
        )
        self.reset_classifier(num_classes)
        if head_zero_init:
            init_linears(self.head, nn.init.zeros_)
        if backbone is not None:
            # Saving refuses what the configuration does not have.
            self._hub_mixin_config = {k: v for k, v in self.config.items() if k != "backbone"}

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, prefix tokens first (section 3.1)."""
        tokens = self.embed(images)
        tokens, ids_keep = self.patch_dropout(tokens, self.num_prefix_tokens)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]), ids_keep)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: positions used inside attention; see `ViT.block_inputs`."""
        return position_inputs(super().block_inputs(grid, ids_keep), self.rotary, self.relative)
