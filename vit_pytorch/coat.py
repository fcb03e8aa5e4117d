"""CoaT: Co-Scale Conv-Attentional Image Transformers.

W. Xu, Y. Xu, T. Chang, Z. Tu 2021, arXiv:2104.06399.

Attention is factorised: keys gather the values into a square of a head's dimension, from which every query
reads, at a cost that is linear in the number of cells. Relative positions are a depth-wise convolution of the
values, weighed by the queries. After serial blocks, scale by scale, parallel blocks transform the three
coarser scales side by side and add to each what the others found, resized (CoaT; CoaT-Lite has serial blocks
only).

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, Mixed, Queries, head_dim
from vit_pytorch.layers.blocks import Block, DropPath, FeedForward, layer
from vit_pytorch.layers.conv import OnMap, PositionGenerator
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import PrefixTokens, pair

# Number of scales, of which the parallel blocks have all but the first.
SCALES = 4


class CoaT(HierarchicalModel):
    """The co-scale conv-attentional transformer.

    Each scale has a class token of its own, before its cells. `forward_features` returns those of the scales
    that are classified, then the cells of the last one.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted, that
            is a multiple of 8 patches.
        patch_size: side of the patches of the first scale, in pixels; it doubles from scale to scale.
        dim: channels of each scale; with parallel blocks, those of the last three are equal.
        depth: number of serial blocks of each scale.
        parallel_depth: number of parallel blocks; None for CoaT-Lite, which classifies the last scale.
        heads: number of attention heads of all blocks.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all scales or each.
        kernel_sizes: sides of the kernels of relative positions, in cells, odd.
        kernel_heads: number of heads that have the kernels of each size.
        drop_path: probability of dropping a residual branch of a sample, in [0, 1), the same in all blocks;
            of a parallel block, in all scales together.
        norm_eps: epsilon of the LayerNorms but those of patches, whose is 1e-5.

    Raises:
        ValueError: if there are other than four scales, heads do not share channels or kernels, a kernel has
            an even side, or scales of parallel blocks differ in channels.
    """

    pool = "cls"
    undecayed = r"\.class_token$"
    needs_last_layers = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        patch_size: int = 4,
        dim: Sequence[int],
        depth: Sequence[int] = (2, 2, 2, 2),
        parallel_depth: int | None = None,
        heads: int = 8,
        mlp_ratio: int | float | Sequence[int | float] = 4,
        kernel_sizes: Sequence[int] = (3, 5, 7),
        kernel_heads: Sequence[int] = (2, 3, 3),
        channels: int = 3,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        if len(dim) != SCALES or len(depth) != SCALES:
            raise ValueError(
                f"dim and depth must be one for each of {SCALES} scales, got {tuple(dim)} and {tuple(depth)}"
            )
        ratios = per_stage("mlp_ratio", mlp_ratio, SCALES, growth=1)
        if len(kernel_sizes) != len(kernel_heads) or sum(kernel_heads) != heads:
            raise ValueError(
                f"kernel_heads must be one number for each of kernel_sizes, {heads} heads in all, got "
                f"{tuple(kernel_heads)} and {tuple(kernel_sizes)}"
            )
        if parallel_depth is not None and (len(set(dim[1:])) > 1 or len(set(ratios[1:])) > 1):
            raise ValueError(
                "the last three scales of parallel blocks must have equal dim and mlp_ratio, got "
                f"{tuple(dim)} and {ratios}"
            )
        strides = [patch_size * 2**scale for scale in range(SCALES)]
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=strides,
            channels=channels,
            size_multiple=(strides[-1], strides[-1]),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def attention(width: int) -> ConvAttention:
            size = head_dim(width, heads)
            kernel = partial(Factorised, attn_dropout)
            return ConvAttention(
                width, heads=heads, dim_head=size, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel
            )

        def feedforward(scale: int) -> FeedForward:
            return FeedForward(dim[scale], int(dim[scale] * ratios[scale]), dropout=dropout)

        for scale, (before, width) in enumerate(zip((channels, *dim), dim, strict=False)):
            step = patch_size if scale == 0 else 2
            down = nn.Sequential(OnMap(nn.Conv2d(before, width, step, step)), nn.LayerNorm(width))
            shared = ConvPositions(width, head_dim(width, heads), kernel_sizes, kernel_heads)
            blocks = [
                SerialBlock(width, attention(width), feedforward(scale), norm=norm, drop_path=drop_path)
                for _ in range(depth[scale])
            ]
            self.stages.append(Scale(down, PrefixTokens(width), shared, blocks))
        self.parallel = nn.ModuleList(
            ParallelBlock(
                dim[-1],
                [attention(width) for width in dim[1:]],
                feedforward(SCALES - 1),
                norm=norm,
                drop_path=drop_path,
            )
            for _ in range(parallel_depth or 0)
        )
        self.outputs = nn.ModuleList(ScaleOutput() for _ in dim[1:] if self.parallel)
        # Of the scales before the last one; that of the last one is `norm`.
        self.norms = nn.ModuleList(
            norm(width) if scale and self.parallel else nn.Identity() for scale, width in enumerate(dim[:-1])
        )
        self.norm = norm(dim[-1])
        self.num_prefix_tokens = SCALES - 1 if self.parallel else 1
        self.aggregate = nn.Linear(SCALES - 1, 1) if self.parallel else nn.Identity()
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the map of each scale is: module, num_chs, reduction (stride in pixels).

        Those of scales that parallel blocks have are the blocks'.
        """
        infos = super().feature_info
        for index, info in enumerate(infos[1:] if self.parallel else ()):
            info["module"] = f"outputs.{index}"
        return infos

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return normed tokens: the class tokens that are classified, then the cells of the last scale."""
        x, grids = self.embed(images), self.grids(images)
        scales = []
        for stage, grid in zip(self.stages, grids, strict=True):
            tokens = stage(x, grid)
            scales.append(tokens)
            x = cells(tokens, grid)
        if not self.parallel:
            return self.norm(scales[-1])
        coarser = list(zip(self.stages, grids, strict=True))[1:]
        inputs = [BlockInputs(grid=grid, shared=stage.shared) for stage, grid in coarser]  # type: ignore[arg-type]
        tokens = torch.cat(scales[1:], dim=1)
        for block in self.parallel:
            tokens = block(tokens, inputs)
        parts = split_scales(tokens, inputs)
        *finer, last = [output(part) for output, part in zip(self.outputs, parts, strict=True)]
        class_tokens = [norm(x[:, :1]) for norm, x in zip(self.norms[1:], finer, strict=True)]
        return torch.cat([*class_tokens, self.norm(last)], dim=1)

    def grids(self, images: Float[Tensor, "b c h w"]) -> list[tuple[int, int]]:
        """Return the rows and columns of the map of each scale."""
        # By index: FX follows no iteration over sizes.
        height, width = images.shape[2], images.shape[3]
        return [(height // stride, width // stride) for stride in self.strides]

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Return the class token; of three, their weighted sum, which is learned."""
        if not self.parallel:
            return features[:, 0]
        return self.aggregate(features[:, : self.num_prefix_tokens].mT)[..., 0]

    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b 1 d"], Sequence[int]]:
        """Return the cells and the class token of a scale, and the rows and columns of its map."""
        if norm:
            output = (*self.norms, self.norm)[layer](output)
        stride = self.strides[layer]
        return output[:, 1:], output[:, :1], (size[0] // stride, size[1] // stride)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth; the coarse ones by scale."""
        blocks = [] if coarse else [(r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {
            "stem": r"^stages\.0\.(?!blocks)",
            "blocks": [*blocks, (r"^stages\.(\d+)\.", None)],
            "parallel": [(r"^parallel\.(\d+)\.", None), (r"^(?:outputs|norms?|aggregate)\.", (99999,))],
        }


def cells(tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None) -> Float[Tensor, "b y x d"]:
    """Return the map of the cells among tokens, which come after the class token."""
    assert grid is not None
    return tokens[:, 1:].unflatten(1, tuple(grid))


def split_scales(tokens: Float[Tensor, "b n d"], inputs: Sequence[BlockInputs]) -> list[Tensor]:
    """Return the tokens of each scale among those of several, one after the other."""
    grids = [each.grid for each in inputs if each.grid is not None]
    parts = tokens.split([1 + rows * columns for rows, columns in grids], dim=1)
    return [parts[index] for index in range(len(grids))]


class ConvPositions(nn.Module):
    """The positions of a scale, which all of its blocks share (section 3.2).

    Args:
        kernel_sizes: sides of the kernels of relative positions, in cells, odd.
        kernel_heads: number of heads that have the kernels of each size.

    Raises:
        ValueError: if a kernel has an even side.
    """

    def __init__(
        self, dim: int, dim_head: int, kernel_sizes: Sequence[int], kernel_heads: Sequence[int]
    ) -> None:
        super().__init__()
        self.positions = PositionGenerator(dim)
        self.relative = RelativeConvs(dim_head, kernel_sizes, kernel_heads)

    def forward(self, tokens: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b n d"]:
        """Add a depth-wise convolution to the cells; the class token stays as it is."""
        placed = self.positions(cells(tokens, inputs.grid)).flatten(1, 2)
        return torch.cat([tokens[:, :1], placed], dim=1)


class RelativeConvs(nn.Module):
    """Queries times depth-wise convolutions of values: attention to relative positions (section 3.2).

    The class token has no position, and gets zeros.

    Args:
        sizes: sides of the kernels, in cells, odd.
        heads: number of heads that have the kernels of each size.

    Raises:
        ValueError: if a side is even.
    """

    def __init__(self, dim_head: int, sizes: Sequence[int], heads: Sequence[int]) -> None:
        super().__init__()
        if any(size % 2 == 0 for size in sizes):
            raise ValueError(f"kernel_sizes must be odd, got {tuple(sizes)}")
        self.heads = sum(heads)
        self.widths = [number * dim_head for number in heads]
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width)
            for width, size in zip(self.widths, sizes, strict=True)
        )

    def forward(self, q: Queries, v: Queries, grid: Sequence[int]) -> Mixed:
        """Return what queries find at relative positions."""
        # Channels-first maps, the channels of one head after the other.
        maps = v[:, :, 1:].transpose(2, 3).flatten(1, 2).unflatten(2, tuple(grid)).split(self.widths, dim=1)
        convolved = torch.cat([conv(maps[index]) for index, conv in enumerate(self.convs)], dim=1)
        values = convolved.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        return F.pad(q[:, :, 1:] * values, (0, 0, 1, 0))


class Factorised(nn.Module):
    """q (softmax(k)^T v) * scale, the softmax over the tokens (section 3.1).

    The weights of a head are how much each channel of its keys takes of each token.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Queries, k: Queries, v: Queries, mask: None = None) -> Mixed:
        """Gather the values by channels of keys, and read them by queries."""
        context = self.dropout(self.weights(k.mT.softmax(dim=-1))) @ v
        return q @ (context * q.shape[-1] ** -0.5)


class ConvAttention(Attention):
    """Factorised attention, and relative positions by convolution (section 3.2)."""

    def attend(self, q: Queries, k: Queries, v: Queries, inputs: BlockInputs) -> Mixed:
        """Attend to contents and to relative positions."""
        assert isinstance(inputs.shared, ConvPositions)
        assert inputs.grid is not None
        return self.kernel(q, k, v) + inputs.shared.relative(q, v, inputs.grid)


class SerialBlock(Block):
    """A block in which a depth-wise convolution of the cells precedes attention (section 3.3)."""

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform the tokens of a scale."""
        assert inputs.shared is not None
        x = inputs.shared(x, inputs)
        x = x + self.drop_path(self.attention(self.norm1(x), inputs))
        return x + self.drop_path(self.feedforward(self.norm2(x)))


class Scale(nn.Module):
    """Embed patches of the scale before, put a class token before them, then apply serial blocks.

    Args:
        down: returns the map of this scale from that of the one before.
        prefix: puts the class token before the cells.
        shared: the positions of all blocks of this scale, the parallel ones, too.
    """

    def __init__(
        self, down: nn.Module, prefix: nn.Module, shared: ConvPositions, blocks: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        self.down = down
        self.prefix = prefix
        self.shared = shared
        self.blocks = nn.ModuleList(blocks)

    @layer
    def forward(self, x: Float[Tensor, "b h w c"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """Return the tokens of this scale, the class token first.

        Args:
            grid: rows and columns of its map.
        """
        inputs = BlockInputs(grid=grid, shared=self.shared)
        x = self.prefix(self.down(x).flatten(1, 2))
        for block in self.blocks:
            x = block(x, inputs)
        return x


class ParallelBlock(nn.Module):
    """A block of several scales, each of which gets what attention found in the others (section 3.3).

    Args:
        attentions: one for each scale.
        feedforward: transforms the tokens of all scales.
    """

    def __init__(
        self,
        dim: int,
        attentions: Iterable[nn.Module],
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.norms1 = nn.ModuleList(norm(dim) for _ in self.attentions)
        self.norms2 = nn.ModuleList(norm(dim) for _ in self.attentions)
        self.feedforward = feedforward
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: Sequence[BlockInputs]) -> Float[Tensor, "b n d"]:
        """Transform the tokens of all scales, one after the other."""
        scales = [each.shared(part, each) for part, each in zip(split_scales(x, inputs), inputs, strict=True)]  # type: ignore[misc]
        parts = zip(self.attentions, self.norms1, scales, inputs, strict=True)
        mixed = exchange([attention(norm(part), each) for attention, norm, part, each in parts], inputs)
        x = torch.cat(scales, dim=1) + self.drop_path(torch.cat(mixed, dim=1))
        normed = [norm(part) for norm, part in zip(self.norms2, split_scales(x, inputs), strict=True)]
        return x + self.drop_path(self.feedforward(torch.cat(normed, dim=1)))


class ScaleOutput(nn.Module):
    """Where hooks reach the tokens of a scale after the parallel blocks."""

    @layer
    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the tokens, contiguous; extractors by FX look for an operation here."""
        return x.contiguous()


def exchange(scales: Sequence[Tensor], inputs: Sequence[BlockInputs]) -> list[Tensor]:
    """Add to the tokens of each scale those of all others, resized (section 3.3).

    Args:
        scales: the tokens of each, whose maps halve from one to the next.
        inputs: what has the grid of each.
    """
    sums = []
    for index, own in enumerate(scales):
        others = [
            resize_cells(scale, each, 2.0 ** (other - index))
            for other, (scale, each) in enumerate(zip(scales, inputs, strict=True))
            if other != index
        ]
        sums.append(own + sum(others[1:], others[0]))
    return sums


def resize_cells(
    tokens: Float[Tensor, "b n d"], inputs: BlockInputs, factor: float
) -> Float[Tensor, "b m d"]:
    """Interpolate the cells among tokens bilinearly; the class token stays as it is."""
    maps = cells(tokens, inputs.grid).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    return torch.cat([tokens[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
