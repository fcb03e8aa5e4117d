"""SepViT: Separable Vision Transformer.

W. Li, X. Wang, X. Xia, J. Wu, J. Li, X. Xiao, M. Zheng, S. Wen 2022, arXiv:2203.15380.

Attention is separated like a separable convolution: cells attend within their window, together with one
learned token of it, and then whole windows attend to each other by their tokens. Every second block has
windows twice as wide. A depth-wise convolution after the first block of a stage encodes positions.

Family: pyramid
Differs from the paper: as in the authors' code, the normed input is added to the output of attention within a
window, and that output to the output of attention between windows, and cells that pad the last windows are
seen by others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, merge_heads
from vit_pytorch.layers.blocks import FeedForward, drop_path_rates, layer
from vit_pytorch.layers.conv import OnMap, PositionedBlock, PositionGenerator
from vit_pytorch.layers.init import init_convs, init_linears
from vit_pytorch.layers.options import check_choice, per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.windows import crop_map, pad_map, windows

Grid = tuple[int, int]


class SepViT(HierarchicalModel):
    """The separable vision transformer.

    Args:
        dim: channels of the first stage, which double from stage to stage; or one number for each stage.
        dim_head: head dimension, of all stages or each; the heads of a stage share its channels.
        heads: number of heads of each stage.
        window_size: side of the windows in cells. Every second block of a stage has windows twice as wide,
            if the map does not fit in one; or a side for each block of each stage, as they are.
        dropout: dropout after the linear layers of the blocks, in [0, 1).
        image_size: the largest input, one number or (height, width) in pixels, if window tokens are
            learned; otherwise the customary one.
        window_tokens: "learned", a token for each window of the largest input and none for a map that is
            one window; or "zeros", the authors' choice for detection, for which inputs may be of any size.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        norm_eps: epsilon of the blocks' LayerNorms and the last; the others have 1e-5.

    Raises:
        ValueError: if the numbers of stages or blocks differ, or heads do not share the channels.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int],
        dim_head: int | Sequence[int] = 32,
        heads: Sequence[int],
        depth: Sequence[int],
        window_size: int | Sequence[Sequence[int]] = 7,
        dropout: float = 0.0,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        window_tokens: str = "learned",
        mlp_ratio: int | float | Sequence[int | float] = 4,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        check_choice("window_tokens", window_tokens, ("learned", "zeros"))
        count = len(depth)
        dims = [dim << i for i in range(count)] if isinstance(dim, int) else list(dim)
        if len({count, len(dims), len(heads)}) > 1 or not count:
            raise ValueError(
                f"dim {dims}, heads {tuple(heads)} and depth {tuple(depth)} must agree in stages"
            )
        widths = per_stage("dim_head", dim_head, count, growth=1)
        ratios = per_stage("mlp_ratio", mlp_ratio, count, growth=1)
        if any(width != n * each for width, n, each in zip(dims, heads, widths, strict=True)):
            raise ValueError(f"dim must be heads times dim_head, got {dims}, {tuple(heads)} and {dim_head}")
        size = pair(image_size)
        strides = [4 << i for i in range(count)]
        maps = [(ceil(size[0] / stride), ceil(size[1] / stride)) for stride in strides]
        sides = window_sides(window_size, depth, maps)
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            any_size=window_tokens == "zeros",
        )

        norm = partial(nn.LayerNorm, eps=norm_eps)
        learned = window_tokens == "learned"
        drops = drop_path_rates(drop_path, depth)
        for i, width in enumerate(dims):
            blocks: list[SeparableBlock] = []
            for side, drop in zip(sides[i], drops[i], strict=True):
                grid = (ceil(maps[i][0] / side), ceil(maps[i][1] / side))
                attention = SeparableAttention(
                    width,
                    heads=heads[i],
                    window=None if learned and grid == (1, 1) else side,
                    grid=grid if learned else None,
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    kernel=partial(FusedAttention, attn_dropout),
                )
                feedforward = FeedForward(width, int(ratios[i] * width), dropout=dropout)
                positions = nn.Identity() if blocks else PositionGenerator(width)
                options: dict[str, Any] = {"norm": norm, "drop_path": drop}
                blocks.append(SeparableBlock(width, attention, feedforward, positions=positions, **options))
            before, kernel_size, stride = (dims[i - 1], 3, 2) if i else (channels, 7, 4)
            conv = nn.Conv2d(before, width, kernel_size, stride, kernel_size // 2)
            down = nn.Sequential(OnMap(conv), nn.LayerNorm(width))
            self.stages.append(Stage(down, blocks))
        self.norm = norm(dims[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class SeparableBlock(PositionedBlock):
    """A block whose first norm acts on all that attention sees: cells, padding and window tokens."""

    attention: SeparableAttention

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Apply both residual branches, then the positional encoding generator, if there is one."""
        height, width = x.shape[1:3]
        padded, tokens = self.attention.whole_windows(x)
        mixed = self.attention(self.norm1(padded), None if tokens is None else self.norm1(tokens))
        x = x + self.drop_path(self.scale1(crop_map(mixed, (height, width))))
        return self.positions(x + self.drop_path(self.scale2(self.feedforward(self.norm2(x)))))


class SeparableAttention(Attention):
    """Attention within windows, then between windows (section 3.3, equations 3 to 5).

    Args:
        window: side of the windows in cells; None if the whole map is one window, which has no token.
        grid: windows along each axis of the largest map, for a learned token of each; None for zeros.
        kernel: builds the two kernels, of attention between cells and between windows.
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
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        width = dim // heads
        super().__init__(dim, heads=heads, dim_head=width, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel)
        self.window = window
        if window is None:
            return
        self.partition = windows((window, window))
        self.tokens = None if grid is None else LearnedPositions(grid, dim)
        self.token_norm = nn.Sequential(nn.LayerNorm(dim), nn.GELU())
        self.to_token_qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.window_kernel = kernel()

    def whole_windows(
        self, x: Float[Tensor, "b h w d"]
    ) -> tuple[Float[Tensor, "b y x d"], Float[Tensor, "1 g d"] | None]:
        """Return the map padded to whole windows, and the token of each window; None for no tokens."""
        if self.window is None:
            return x, None
        x = pad_map(x, self.partition.multiple)
        grid = (x.shape[1] // self.window, x.shape[2] // self.window)
        tokens = x.new_zeros(1, grid[0] * grid[1], x.shape[3])
        return x, tokens if self.tokens is None else self.tokens(tokens, grid=grid)

    def mix_cells(self, x: Float[Tensor, "g n d"]) -> Float[Tensor, "g n d"]:
        """Attend from each token to those of its window, and add the tokens."""
        return x + merge_heads(self.kernel(*self.project(x)))

    def mix_windows(
        self, tokens: Float[Tensor, "b g d"], cells: Float[Tensor, "b g n d"]
    ) -> Float[Tensor, "b g n d"]:
        """Attend between windows by their tokens, separately for each place in them, and add the cells."""
        qk = self.to_token_qk(self.token_norm(tokens)).unflatten(-1, (2, self.heads, self.dim_head))
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        v = cells.unflatten(-1, (self.heads, self.dim_head)).permute(0, 3, 1, 2, 4).flatten(3)
        mixed = self.window_kernel(q, k, v).unflatten(-1, (-1, self.dim_head))
        return cells + mixed.permute(0, 2, 3, 1, 4).flatten(3)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b y x d"], tokens: Float[Tensor, "1 g d"] | None = None
    ) -> Float[Tensor, "b y x d"]:
        """Mix the cells of a map of whole windows.

        Args:
            tokens: the token of each window; None if the map is one window.
        """
        batch, height, width, dim = x.shape
        if self.window is None:
            return self.dropout(self.to_out(self.mix_cells(x.flatten(1, 2)))).unflatten(1, (height, width))
        assert tokens is not None
        tokens = tokens.expand(batch, -1, -1).reshape(-1, 1, dim)
        mixed = self.mix_cells(torch.cat([tokens, self.partition.split(x)], dim=1)).unflatten(0, (batch, -1))
        mixed = self.mix_windows(mixed[:, :, 0], mixed[:, :, 1:])
        return self.partition.merge(self.dropout(self.to_out(mixed.flatten(0, 1))), (height, width))


def window_sides(
    window_size: int | Sequence[Sequence[int]], depth: Sequence[int], maps: Sequence[Grid]
) -> list[list[int]]:
    """Return the side of the windows of each block of each stage.

    Raises:
        ValueError: if there is not a side for each block.
    """
    if isinstance(window_size, int):
        wide = [2 * window_size if max(extents) > window_size else window_size for extents in maps]
        return [[(window_size, w)[i % 2] for i in range(n)] for n, w in zip(depth, wide, strict=True)]
    sides = [list(each) for each in window_size]
    if [len(each) for each in sides] != list(depth):
        raise ValueError(f"window_size must have a side for each block of {tuple(depth)}, got {sides}")
    return sides
