"""SepViT: Separable Vision Transformer.

W. Li, X. Wang, X. Xia, J. Wu, J. Li, X. Xiao, M. Zheng, S. Wen 2022, arXiv:2203.15380.

Attention is taken apart like a separable convolution: cells attend within their window, together with one
learned token of it, and then whole windows are mixed with each other by the attention of their tokens. Every
second block has windows twice as wide. A depth-wise convolution behind the first block of a stage tells
cells their places.

Family: pyramid
Differs from the paper: as in the authors' code, the normed input is added to what attention within a window
gives, and what that gives to the mix of windows, and cells that fill the last windows up are seen by others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import OnMap, PositionedBlock, PositionGenerator
from vit_pytorch.layers_v01.init import init_convs, init_linears
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.windows import pad_map, windows

Grid = tuple[int, int]


class SeparableAttention(Attention):
    """Attention within windows, then of windows to each other (section 3.3, equations 3 to 5).

    Args:
        dim: width of a cell, of all heads together.
        heads: number of heads.
        window: side of the windows in cells; None where the whole map is one window, which has no token.
        grid: windows along each axis of the largest map, for a learned token of each; None for zeros.
        qkv_bias: whether queries, keys and values have biases.
        dropout: dropout on the output.
        attend: makes the two kernels that mix cells and windows.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        window: int | None,
        grid: Grid | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attend: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        width = dim // heads
        super().__init__(dim, heads=heads, dim_head=width, qkv_bias=qkv_bias, dropout=dropout, attend=attend)
        self.window = window
        if window is None:
            return
        self.partition = windows((window, window))
        self.tokens = None if grid is None else LearnedPositions(grid, dim)
        if self.tokens is not None:
            nn.init.zeros_(self.tokens.table)
        self.token_norm = nn.Sequential(nn.LayerNorm(dim), nn.GELU())
        self.to_token_qk = Linear(dim, 2 * dim, bias=qkv_bias)
        self.attend_windows = attend()

    def mix(self, x: Float[Tensor, "g n d"]) -> Float[Tensor, "g n d"]:
        """Let tokens attend to those of their window, and add them."""
        return x + self.attend(*self.project(x)).transpose(1, 2).flatten(2)

    def mix_windows(
        self, tokens: Float[Tensor, "b w d"], cells: Float[Tensor, "b w n d"]
    ) -> Float[Tensor, "b w n d"]:
        """Let windows attend to each other by their tokens, cell by cell of the same place, and add them."""
        qk = self.to_token_qk(self.token_norm(tokens)).unflatten(-1, (2, self.heads, self.dim_head))
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        v = cells.unflatten(-1, (self.heads, self.dim_head)).permute(0, 3, 1, 2, 4).flatten(3)
        mixed = self.attend_windows(q, k, v).unflatten(-1, (-1, self.dim_head))
        return cells + mixed.permute(0, 2, 3, 1, 4).flatten(3)

    def forward(self, x: Float[Tensor, "b y x d"], norm: nn.Module | None = None) -> Float[Tensor, "b y x d"]:
        """Mix the cells of a map.

        Args:
            x: the map.
            norm: acts on what attention sees: the cells, those that fill windows up, and window tokens.
        """
        norm = nn.Identity() if norm is None else norm
        batch, height, width, dim = x.shape
        if self.window is None:
            mixed = self.mix(norm(x.flatten(1, 2)))
            return self.dropout(self.to_out(mixed)).unflatten(1, (height, width))
        x = norm(pad_map(x, self.partition.multiple))
        padded = x.shape[1:3]
        grid = [extent // self.window for extent in padded]
        tokens = x.new_zeros(1, grid[0] * grid[1], dim) if self.tokens is None else self.tokens(grid)
        tokens = norm(tokens).expand(batch, -1, -1).reshape(-1, 1, dim)
        mixed = self.mix(torch.cat([tokens, self.partition.split(x)], dim=1)).unflatten(0, (batch, -1))
        mixed = self.mix_windows(mixed[:, :, 0], mixed[:, :, 1:])
        mixed = self.dropout(self.to_out(mixed.flatten(0, 1)))
        return self.partition.merge(mixed, padded)[:, :height, :width]


class WindowResidual(Residual):
    """x + tail(branch(x, norm)), for a branch that norms more than it is given."""

    def update(self, x: Float[Tensor, "b y x d"], *context: Any) -> Float[Tensor, "b y x d"]:
        """Give what the branch adds to its input."""
        return self.tail(self.branch(x, self.norm, *context))


class SepViT(HierarchicalModel):
    """The separable vision transformer.

    Args:
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a cell in the first stage, which doubles from stage to stage; or one for each stage.
        dim_head: width of a head, of which the heads of a stage make its width.
        heads: number of heads in each stage.
        depth: number of blocks in each stage.
        window_size: side of the windows in cells. Every second block of a stage has windows twice as wide,
            if the map does not fit in one; or a side for each block of each stage, as they are.
        dropout: dropout on embedded patches and behind the linear layers of the blocks, in [0, 1).
        image_size: the largest input, one number or (height, width) in pixels, where window tokens are
            learned; otherwise the customary one.
        channels: channels of the input.
        window_tokens: "learned", a token for each window of the largest input and none for a map that is
            one window; or "zeros", the authors' choice for detection, for which inputs may be of any size.
        mlp_ratio: width inside the feed-forward by that of a cell.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the blocks' LayerNorms and the last; the others have 1e-5.

    Raises:
        ValueError: where the numbers of stages or blocks differ, or heads do not make the width.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int],
        dim_head: int = 32,
        heads: Sequence[int],
        depth: Sequence[int],
        window_size: int | Sequence[Sequence[int]] = 7,
        dropout: float = 0.0,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        window_tokens: str = "learned",
        mlp_ratio: int = 4,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        check_choice("window_tokens", window_tokens, ("learned", "zeros"))
        count = len(depth)
        dims = [dim << i for i in range(count)] if isinstance(dim, int) else list(dim)
        if len({count, len(dims), len(heads)}) > 1 or not count:
            raise ValueError(f"dim {dims}, heads {tuple(heads)} and depth {tuple(depth)} differ in stages")
        if any(width != n * dim_head for width, n in zip(dims, heads, strict=True)):
            raise ValueError(f"widths {dims} are not {tuple(heads)} heads of dim_head {dim_head}")
        size = pair(image_size)
        strides = [4 << i for i in range(count)]
        maps = [(ceil(size[0] / stride), ceil(size[1] / stride)) for stride in strides]
        sides = _window_sides(window_size, depth, maps)
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            any_size=window_tokens == "zeros",
        )

        def block(stage: int, layer: int) -> Block:
            width, side = dims[stage], sides[stage][layer]
            grid = (ceil(maps[stage][0] / side), ceil(maps[stage][1] / side))
            learned = window_tokens == "learned"
            attention = SeparableAttention(
                width,
                heads=heads[stage],
                window=None if learned and grid == (1, 1) else side,
                grid=grid if learned else None,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(width, mlp_ratio * width, dropout=dropout)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            tail = partial(make_tail, width, drop_path=drop)
            branches = WindowResidual(attention, norm(), tail()), Residual(feedforward, norm(), tail())
            return Block(*branches) if layer else PositionedBlock(*branches, PositionGenerator(width))

        def stage(i: int) -> Stage:
            before, kernel, stride = (dims[i - 1], 3, 2) if i else (channels, 7, 4)
            conv = nn.Conv2d(before, dims[i], kernel, stride, kernel // 2)
            down = nn.Sequential(OnMap(conv), nn.LayerNorm(dims[i]), nn.Dropout(dropout))
            return Stage(down, Encoder(partial(block, i), depth=depth[i]))

        self.stages = nn.ModuleList(map(stage, range(count)))
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        init_convs(self)
        self.reset_classifier(num_classes)


def _window_sides(
    window_size: int | Sequence[Sequence[int]], depth: Sequence[int], maps: Sequence[Grid]
) -> list[list[int]]:
    """Give the side of the windows of every block of every stage."""
    smallest = window_size if isinstance(window_size, int) else min(map(min, window_size))
    if smallest < 1:
        raise ValueError(f"a window's side is at least 1, got {smallest}")
    if isinstance(window_size, int):
        wide = [2 * window_size if max(extents) > window_size else window_size for extents in maps]
        return [[(window_size, w)[i % 2] for i in range(n)] for n, w in zip(depth, wide, strict=True)]
    sides = [list(each) for each in window_size]
    if [len(each) for each in sides] != list(depth):
        raise ValueError(f"window_size {sides} does not have a side for each block of depth {tuple(depth)}")
    return sides
