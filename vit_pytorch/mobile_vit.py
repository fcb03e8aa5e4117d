"""MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer.

S. Mehta, M. Rastegari 2021, arXiv:2110.02178.

A small convolutional network in three of whose stages a transformer stands in place of a convolution: it
unfolds the map into patches, lets the cells at the same place of all patches attend to each other, and folds
the patches back, so that a cell sees the whole map and its order stays as it is without positions.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import Attention, FusedAttention, head_dim
from vit_pytorch.layers.blocks import Block, FeedForward, activation, fx_leaf
from vit_pytorch.layers.conv import ConvNorm, InvertedBottleneck, OnMap, stretch
from vit_pytorch.layers.init import init_convs
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.windows import Partition


class MobileViT(HierarchicalModel):
    """The light-weight vision transformer; takes images of any size.

    Args:
        image_size: the customary input, one number or (height, width) in pixels.
        dims: token dimension of the transformer in each of the last three stages.
        channels: channels of the input; or, as a sequence, the model's `widths`, for an input of 3.
        widths: channels of the maps, eleven numbers: of the stem; of the first stage; of the second stage's
            first convolution and of its others; of each further stage's convolution and of its
            transformer's block, which have to be the same; and of the map that is pooled.
        expansion: hidden channels of the inverted bottlenecks, as a multiple of their input channels.
        kernel_size: side of the kernel of the convolutions around the transformers, odd.
        patch_size: cells of a patch, one number or (height, width).
        depths: number of transformer blocks in each of the last three stages.
        mlp_ratio: hidden dimension of the feed-forwards, as a multiple of `dims`.
        drop_path: probability of dropping a branch of the transformers, in [0, 1); the same in all blocks.

    Raises:
        ValueError: if the widths are not eleven, or those of a stage differ, or `dims` do not fit.
    """

    stem_is_layer = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        dims: Sequence[int],
        channels: int | Sequence[int] = 3,
        num_classes: int,
        expansion: float = 4.0,
        kernel_size: int = 3,
        patch_size: int | Sequence[int] = (2, 2),
        depths: Sequence[int] = (2, 4, 3),
        widths: Sequence[int] | None = None,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        if not isinstance(channels, int):
            if widths is not None:
                raise ValueError(
                    f"widths must be given once, got {tuple(channels)} as channels and {tuple(widths)}"
                )
            widths, channels = tuple(channels), 3
        stem, *stages, last = _check_widths(widths)
        if len(dims) != 3 or len(depths) != 3:
            raise ValueError(
                f"dims and depths must be one for each of 3 stages, got {tuple(dims)} and {tuple(depths)}"
            )
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=stages,
            strides=(2, 4, 8, 16, 32),
            channels=channels,
        )
        # The configuration has one word for one thing.
        self._record(channels=channels, widths=widths)
        self.num_features = self.classifier_dim = last
        self.stem = OnMap(ConvNorm(channels, stem, stride=2, act="silu"))

        def transformer(dim: int) -> Block:
            kernel = partial(FusedAttention, attn_dropout)
            return Block(
                dim,
                Attention(dim, heads=heads, dim_head=head_dim(dim, heads), dropout=dropout, kernel=kernel),
                FeedForward(dim, int(dim * mlp_ratio), dropout=dropout, act="silu"),
                norm=partial(nn.LayerNorm, eps=norm_eps),
                drop_path=drop_path,
            )

        for i, (before, width) in enumerate(zip([stem, *stages], stages, strict=False)):
            down = InvertedResidual(before, width, stride=1 if i == 0 else 2, expansion=expansion)
            blocks: list[nn.Module] = []
            if i == 1:
                blocks = [InvertedResidual(width, width, expansion=expansion) for _ in range(2)]
            elif i > 1:
                dim, depth = dims[i - 2], depths[i - 2]
                layers = [transformer(dim) for _ in range(depth)]
                norm = nn.LayerNorm(dim, eps=norm_eps)
                blocks = [
                    MobileViTBlock(width, dim, layers, norm, patch=pair(patch_size), kernel_size=kernel_size)
                ]
            self.stages.append(Stage(down, blocks))
        self.norm = PointwiseNorm(stages[-1], last)
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map, after the convolution that widens it."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class MobileViTBlock(nn.Module):
    """Transformers as convolutions (section 3.1, figure 1b).

    Args:
        transformer: blocks that act on sequences of cells, one cell from each patch.
        norm: acts on the output of the transformer.
        patch: extents of a patch, in cells.
        kernel_size: side of the convolutions' kernel.
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        transformer: Iterable[nn.Module],
        norm: nn.Module,
        *,
        patch: tuple[int, int],
        kernel_size: int,
    ) -> None:
        super().__init__()
        self.local = OnMap(ConvNorm(channels, channels, kernel_size, act="silu"))
        self.widen = nn.Linear(channels, dim, bias=False)
        self.partition = Partition((None, None), patch)
        self.transformer = nn.ModuleList(transformer)
        self.norm = norm
        self.narrow = PointwiseNorm(dim, channels)
        self.fuse = OnMap(ConvNorm(2 * channels, channels, kernel_size, act="silu"))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        seen = self.narrow(self.look(self.widen(self.local(x))))
        return self.fuse(torch.cat([x, seen], dim=3))

    def look(self, x: Float[Tensor, "b h w e"]) -> Float[Tensor, "b h w e"]:
        """Attend among the cells at the same place of all patches.

        A map that is no multiple of the patch is stretched to the next one, and back, bilinearly.
        """
        height, width = x.shape[1:3]
        whole = stretch_to_multiple(x, self.partition.multiple)
        cells = self.partition.split(whole)
        for block in self.transformer:
            cells = block(cells)
        return stretch(self.partition.merge(self.norm(cells), whole.shape[1:3]), (height, width))


class InvertedResidual(InvertedBottleneck):
    """An inverted bottleneck, with a residual if the map keeps its size and its channels (section 3.1).

    Args:
        stride: 2 to halve the map.
        expansion: hidden channels, as a multiple of `dim`; rounded to a multiple of 8.
    """

    def __init__(self, dim: int, out_dim: int, *, stride: int = 1, expansion: float = 4.0) -> None:
        def depthwise(width: int) -> nn.Conv2d:
            return nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)

        super().__init__(dim, out_dim, round_to_eights(dim * expansion), depthwise=depthwise)
        self.residual = stride == 1 and dim == out_dim

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Transform the map."""
        return x + super().forward(x) if self.residual else super().forward(x)


class PointwiseNorm(nn.Sequential):
    """A linear layer without bias, batch norm and an activation, on a map whose channels are last."""

    def __init__(self, dim: int, out_dim: int, *, act: str = "silu") -> None:
        super().__init__(nn.Linear(dim, out_dim, bias=False), OnMap(nn.BatchNorm2d(out_dim)), activation(act))


@fx_leaf
def stretch_to_multiple(x: Float[Tensor, "b h w d"], multiple: Sequence[int]) -> Float[Tensor, "b y x d"]:
    """Resize a map bilinearly to the next multiple along each axis."""
    return stretch(x, [-(-extent // m) * m for extent, m in zip(x.shape[1:3], multiple, strict=True)])


def round_to_eights(width: float) -> int:
    """Round a width to the nearest multiple of 8, upwards if it would lose more than a tenth."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def _check_widths(widths: Sequence[int] | None) -> list[int]:
    """Return the channels of the stem, of the five stages and of the map that is pooled.

    Raises:
        ValueError: if they are not eleven, or those of a stage differ.
    """
    found = tuple(widths or ())
    if len(found) != 11:
        raise ValueError(f"widths must be 11, one for each map, got {len(found)}: {found}")
    pairs = list(zip(found[2:10:2], found[3:10:2], strict=True))
    if any(first != second for first, second in pairs):
        raise ValueError(f"the two widths of each stage from the second on must be the same, got {pairs}")
    return [found[0], found[1], *(second for _, second in pairs), found[10]]
