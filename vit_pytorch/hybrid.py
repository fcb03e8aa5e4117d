"""An Image is Worth 16x16 Words: the hybrid architecture.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The transformer's input is the feature map of a convolutional network instead of the image: its cells, or
patches of them, are the tokens (section 3.1). The paper's network is Big Transfer's ResNet
(arXiv:1912.11370), with group norm and standardised weights (arXiv:1903.10520).

Family: plain
Differs from the paper: nothing; any other network that gives a map can be passed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers_v01.init import init_convs
from vit_pytorch.layers_v01.patches import PatchGrid, pair
from vit_pytorch.vit_v01 import Pool, ViT


class StandardisedConv(nn.Conv2d):
    """A convolution without bias whose kernels have mean 0 and variance 1, each output channel by itself.

    Padding is TensorFlow's "SAME": the size is divided by the stride, rounded up, and an odd cell of padding
    is behind the map.

    Args:
        dim: channels that enter.
        out_dim: channels that leave.
        kernel: side of the kernel.
        stride: distance of the kernel's places.
        eps: added to the variance.
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


def _pad_same(
    x: Float[Tensor, "b c h w"], kernel: int, stride: int, value: float = 0.0
) -> Float[Tensor, "b c y x"]:
    """Pad a map so that a kernel has as many places as the stride divides the size, rounded up."""
    missing = [max((-(-extent // stride) - 1) * stride + kernel - extent, 0) for extent in x.shape[2:]]
    top, left = (extent // 2 for extent in missing)
    if not any(missing):
        return x
    return F.pad(x, (left, missing[1] - left, top, missing[0] - top), value=value)


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385, figure 5).

    Args:
        dim: channels that enter.
        out_dim: channels that leave; a quarter of them are between the convolutions.
        stride: that of the middle convolution and of the shortcut.
        groups: groups of the norms.
    """

    def __init__(self, dim: int, out_dim: int, *, stride: int = 1, groups: int = 32) -> None:
        super().__init__()
        inner = out_dim // 4
        self.downsample = (
            nn.ModuleDict(
                {
                    "conv": StandardisedConv(dim, out_dim, stride=stride),
                    "norm": nn.GroupNorm(groups, out_dim),
                }
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
        """Give the map behind the block."""
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample["norm"](self.downsample["conv"](x))
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(shortcut + self.norm3(self.conv3(x)))


class ResNet(nn.Module):
    """Big Transfer's ResNet without its head, of bottlenecks whose norms come behind the convolutions.

    Args:
        channels: channels of the input.
        depths: blocks in each stage; each stage but the first halves the map and doubles the width.
        width: channels of the stem, of which a stage's first has four times as many; a multiple of 32.

    Attributes:
        reduction: pixels along a side of the last map's cell.
        num_features: channels of the last map.

    Raises:
        ValueError: where there is no stage, or the width does not divide into the norms' 32 groups.
    """

    def __init__(self, channels: int, depths: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        if not depths or min(depths) < 1 or width % 32 or width < 32:
            raise ValueError(
                f"a ResNet has stages of at least one block, of a width that is a multiple of 32; "
                f"got {tuple(depths)} blocks and width {width}"
            )
        self.stem = nn.ModuleDict(
            {"conv": StandardisedConv(channels, width, 7, stride=2), "norm": nn.GroupNorm(32, width)}
        )
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
        """Give the last stage's map."""
        x = F.relu(self.stem["norm"](self.stem["conv"](images)))
        x = F.max_pool2d(_pad_same(x, 3, 2, value=-torch.inf), 3, 2)
        for stage in self.stages:
            x = stage["blocks"](x)  # type: ignore[index]
        return x


class MapEmbed(nn.Module):
    """Embed patches of a network's feature map.

    Args:
        backbone: gives a map from images, or several maps as a sequence or a mapping, of which the last
            counts.
        grid: how the input is cut: its patches, in pixels, are cells of the tokens.
        patch: cells of the map along each axis of a patch.
        features: channels of the map.
        dim: width of a token.
    """

    def __init__(
        self, backbone: nn.Module, grid: PatchGrid, patch: tuple[int, int], features: int, dim: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.backbone = backbone
        self.proj = nn.Conv2d(features, dim, patch, patch)
        nn.init.trunc_normal_(self.proj.weight, std=(features * patch[0] * patch[1]) ** -0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images; the tokens come in row-major order of the grid.

        Raises:
            ValueError: where the network's map has another size than the images' should have.
        """
        x = self.proj(last_map(self.backbone(images)))
        if tuple(x.shape[2:]) != self.grid.fit(images.shape[2:]):
            raise ValueError(
                f"the backbone gives {tuple(x.shape[2:])} patches for images of size "
                f"{tuple(images.shape[2:])}, expected {self.grid.fit(images.shape[2:])}"
            )
        return x.flatten(2).transpose(1, 2)


def last_map(output: Any) -> Float[Tensor, "b d h w"]:
    """Take the last map of what a network gives: a map, a sequence of maps, or a mapping to maps.

    Raises:
        ValueError: where that is no map.
    """
    found: Any = output
    if isinstance(found, Mapping):
        found = list(found.values())
    if isinstance(found, (list, tuple)) and found:
        found = found[-1]
    if not isinstance(found, Tensor) or found.ndim != 4:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"a backbone gives maps of shape (batch, channels, height, width), got {got}")
    return found


def _measure(backbone: nn.Module, channels: int, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """Tell how many pixels a cell of a network's map is along each axis, and the map's channels."""
    if isinstance(backbone, ResNet):
        return (backbone.reduction, backbone.reduction), backbone.num_features
    like = next(backbone.parameters(), torch.empty(0))
    modes = {module: module.training for module in backbone.modules()}
    with torch.no_grad():
        found = last_map(backbone.eval()(like.new_zeros(1, channels, *size)))
    for module, mode in modes.items():
        module.training = mode
    rows, columns = found.shape[2:]
    if size[0] % rows or size[1] % columns:
        raise ValueError(f"image size {size} is not a multiple of the backbone's map, {(rows, columns)}")
    return (size[0] // rows, size[1] // columns), found.shape[1]


class HybridViT(ViT):
    """The ViT on the feature map of a convolutional network.

    A module is nothing that a configuration file can hold: with a `backbone` that was passed in,
    `save_pretrained` refuses; save the state dict. The ResNet of its own is described by numbers.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch in cells of the feature map, one number or (height, width).
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        backbone: gives feature maps from images; None for Big Transfer's ResNet. It is used as it is, not
            copied, and is asked once, for one image of zeros, how large its map is.
        resnet_depths: blocks in each stage of the ResNet: (2, 2, 2, 2) for the R26, (3, 4, 6, 3) for the R50,
            (3, 4, 9) for the R50 whose last stage is moved to the one before it.
        resnet_width: channels of the ResNet's stem.
        channels: channels of the input.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        pool: see `ViT`.
        dim_head: width of a head.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        patch_dropout: share of the tokens that is left out in training, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.
        positions: see `ViT`.
        class_token: whether there is a class token; None means where `pool` is "cls".
        num_registers: number of register tokens.
        head_zero_init: whether the classifier starts at zero.

    Raises:
        ValueError: where sizes do not divide, options contradict each other, or the backbone gives no map.
    """

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
        positions: str = "learned",
        class_token: bool | None = None,
        num_registers: int = 0,
        head_zero_init: bool = False,
    ) -> None:
        network = ResNet(channels, resnet_depths, width=resnet_width) if backbone is None else backbone
        cell, features = _measure(network, channels, pair(image_size))
        patch = pair(patch_size)
        super().__init__(
            image_size=image_size,
            patch_size=(patch[0] * cell[0], patch[1] * cell[1]),
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dropout=dropout,
            emb_dropout=emb_dropout,
            pool=pool,
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            attn_dropout=attn_dropout,
            patch_dropout=patch_dropout,
            drop_path=drop_path,
            norm_eps=norm_eps,
            positions=positions,
            class_token=class_token,
            num_registers=num_registers,
            head_zero_init=head_zero_init,
        )
        self.patch_embed = MapEmbed(network, self.grid, patch, features, dim)
        if backbone is not None:
            # Saving refuses what the configuration does not have.
            self._hub_mixin_config = {k: v for k, v in self.config.items() if k != "backbone"}
