"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows.

Z. Liu, Y. Lin, Y. Cao, H. Hu, Y. Wei, Z. Zhang, S. Lin, B. Guo 2021, arXiv:2103.14030.

Attention stays within windows of neighbouring cells, at a cost that is linear in the size of the image. In
every second block the windows are shifted by half of their size, so that what one window has gathered reaches
the next. Between stages 2 x 2 cells are merged.

Family: pyramid
Differs from the paper: nothing at the sizes of the named models. Elsewhere, as in timm, a map is padded to
whole windows after it was shifted (the authors' code for detection pads before), and other cells see the
padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import ceil

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import Attention, FusedAttention, heads_per_stage
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates
from vit_pytorch.layers.conv import OnMap
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import RelativeBias
from vit_pytorch.layers.windows import PatchMerging, ShiftedWindowAttention

Pair = tuple[int, int]
Sizes = int | Sequence[int] | Sequence[Sequence[int]]
# Builds a block from its stage, its window, the shift of its windows and its rate of stochastic depth.
MakeBlock = Callable[[int, Pair, Pair, float], nn.Module]


class SwinTransformer(HierarchicalModel):
    """The Swin Transformer.

    Args:
        dim: channels of the first stage, which double from stage to stage; or one number for each stage.
        depth: number of blocks of each stage; in the second, fourth, ... windows are shifted.
        heads: number of heads of each stage; default one for 32 channels.
        window_size: cells of a window, one number for all stages, or one for each stage, a number or
            (height, width). A stage whose map of `image_size` fits into a window has windows as large as
            that, which are not shifted.
        image_size: the customary input, one number or (height, width) in pixels; any multiple of
            `patch_size` is accepted.
        patch_size: side of the patches that become cells of the first stage.
        dim_head: head dimension of all stages or each; default that by which the heads of a stage share its
            channels.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        qk_scale: factor on the attention scores; default 1 / sqrt(head dimension).
        patch_norm: apply LayerNorm to embedded patches.
        dropout: dropout on embedded patches and after the linear layers of the blocks, in [0, 1).

    Raises:
        ValueError: if the numbers of stages differ, or heads do not share the channels.
    """

    # Merging learns at the rate of its stage's first block, as in the authors' code.
    down_in_first_block = True

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] | None = None,
        window_size: Sizes = 7,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        channels: int = 3,
        dim_head: int | Sequence[int] | None = None,
        mlp_ratio: int | float | Sequence[int | float] = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, heads)
        each = (
            [width // n for width, n in zip(dims, all_heads, strict=True)] if dim_head is None else dim_head
        )
        head_dims = per_stage("dim_head", each, count, growth=1)
        ratios = per_stage("mlp_ratio", mlp_ratio, count, growth=1)
        size = pair(image_size)
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=[patch_size * 2**stage for stage in range(count)],
            channels=channels,
            size_multiple=(patch_size, patch_size),
            min_size=(patch_size, patch_size),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def block(stage: int, window: Pair, shift: Pair, drop: float) -> Block:
            attention = Attention(
                dims[stage],
                heads=all_heads[stage],
                dim_head=head_dims[stage],
                qkv_bias=qkv_bias,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout, qk_scale),
            )
            bias = RelativeBias(window, all_heads[stage])
            feedforward = FeedForward(dims[stage], int(dims[stage] * ratios[stage]), dropout=dropout)
            shifted = ShiftedWindowAttention(attention, window, shift, bias)
            return Block(dims[stage], shifted, feedforward, norm=norm, drop_path=drop)

        self.stem = patch_embedding(channels, dims[0], patch_size, norm if patch_norm else None, dropout)
        downs = [nn.Identity(), *(PatchMerging(*widths, norm=norm) for widths in pairwise(dims))]
        grid = (size[0] // patch_size, size[1] // patch_size)
        rates = drop_path_rates(drop_path, depth)
        self.stages.extend(shifted_stages(grid, window_size, downs, rates, block))
        self.norm = norm(dims[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


def patch_embedding(
    channels: int, dim: int, patch_size: int, norm: Callable[[int], nn.Module] | None, dropout: float
) -> nn.Sequential:
    """Build what makes patches of an image the cells of the first stage.

    Args:
        patch_size: side of the patches.
        norm: builds the norm of the embedded patches; None for no norm.
    """
    conv = nn.Conv2d(channels, dim, patch_size, patch_size)
    return nn.Sequential(OnMap(conv), nn.Identity() if norm is None else norm(dim), nn.Dropout(dropout))


def shifted_stages(
    grid: Pair,
    window_size: Sizes,
    downs: Sequence[nn.Module],
    rates: Sequence[Sequence[float]],
    block: MakeBlock,
) -> Iterator[Stage]:
    """Yield the stages of a model, whose blocks have windows by turns in place and shifted.

    Args:
        grid: rows and columns of the first stage's map.
        window_size: cells of a window, for all stages or each.
        downs: what halves the map before each stage.
        rates: rates of stochastic depth of the blocks of each stage.
        block: builds a block from its stage, its window, its shift and its rate.

    Raises:
        ValueError: if there are not as many windows as stages.
    """
    sizes: Sequence[int | Sequence[int]] = (
        [window_size] * len(downs) if isinstance(window_size, int) else window_size
    )
    if len(sizes) != len(downs):
        raise ValueError(
            f"window_size must be one number or one for each of {len(downs)} stages, got {sizes}"
        )
    for stage, (down, size, drops) in enumerate(zip(downs, sizes, rates, strict=True)):
        extents = [ceil(extent / 2**stage) for extent in grid]
        axes = list(zip(extents, pair(size), strict=True))
        window = pair([min(axis) for axis in axes])
        half = pair([side // 2 if extent > side else 0 for extent, side in axes])
        blocks = (block(stage, window, half if i % 2 else (0, 0), drop) for i, drop in enumerate(drops))
        yield Stage(down, blocks)
