"""Global Context Vision Transformers.

A. Hatamizadeh, H. Yin, G. Heinrich, J. Kautz, P. Molchanov 2022, arXiv:2206.09959.

A pyramid whose blocks attend within windows: in every second block the queries are not the window's own, but
those of the whole map, which a stage computes once by convolutions and pooling and all of its windows share.
So each cell of a window receives what the window has of a place of the whole picture. Convolutions with a
gate of the channels come before each halving of the map.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    FusedAttention,
    heads_per_stage,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, layer
from vit_pytorch.layers.conv import OnMap, SqueezeExcite
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import RelativeBias
from vit_pytorch.layers.windows import GroupAttention, windows

# Pixels from one cell of the first stage to the next.
STRIDE = 4


class GCViT(HierarchicalModel):
    """The global context vision transformer.

    Height and width of an input are those of `image_size`: the windows have as many cells as the map of the
    global queries, which is a part of the stage's map, and learned biases for each offset.
    `set_input_size` makes the windows larger or smaller.

    Args:
        dim: channels of the first stage, which double from stage to stage; or one number for each stage.
        depth: number of blocks of each stage, two at least; the second, fourth, ... have global queries.
        heads: number of heads of each stage; default one for 32 channels.
        num_windows: number of windows along each side of a stage's map, powers of 2, one for each stage.
        image_size: the input, one number or (height, width) in pixels; each stage's map consists of whole
            windows.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.

    Raises:
        ValueError: if the numbers of stages differ, a stage has no second block, heads do not share the
            channels, windows do not divide the maps, or their number is not a power of 2.
    """

    stage_is_layer = True

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = 64,
        depth: Sequence[int] = (3, 4, 19, 5),
        heads: Sequence[int] | None = None,
        num_windows: Sequence[int] = (8, 4, 1, 1),
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        mlp_ratio: int | float | Sequence[int | float] = 3,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-5,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, heads)
        ratios = per_stage("mlp_ratio", mlp_ratio, count, growth=1)
        if len(num_windows) != count:
            raise ValueError(f"num_windows must be one for each of {count} stages, got {tuple(num_windows)}")
        if any(number & (number - 1) for number in num_windows):
            raise ValueError(f"num_windows must be powers of 2, got {tuple(num_windows)}")
        if min(depth) < 2:
            raise ValueError(
                f"a stage needs a second block, which has global queries, got depth {tuple(depth)}"
            )
        size = pair(image_size)
        strides = [STRIDE * 2**stage for stage in range(count)]
        multiple = max(stride * number for stride, number in zip(strides, num_windows, strict=True))
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            size_multiple=(multiple, multiple),
            any_size=False,
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "dropout": dropout, "kernel": kernel}

        def block(stage: int, window: tuple[int, int], index: int, drop: float) -> Block:
            width, n = dims[stage], all_heads[stage]
            mixer: nn.Module
            if index % 2:
                mixer = GlobalAttention(width, heads=n, window=window, **options)
            else:
                attention = Attention(width, heads=n, dim_head=width // n, **options)
                mixer = GroupAttention(
                    attention, windows(window), RelativeBias(window, n), mask_padding=False
                )
            feedforward = FeedForward(width, int(width * ratios[stage]), dropout=dropout)
            return Block(width, mixer, feedforward, norm=norm, layer_scale=layer_scale, drop_path=drop)

        self.stem = nn.Sequential(
            OnMap(nn.Conv2d(channels, dims[0], 3, 2, 1)), downsample(dims[0], dims[0], norm_eps)
        )
        downs = (nn.Identity(), *(downsample(*widths, norm_eps) for widths in pairwise(dims)))
        for stage, (down, rates) in enumerate(zip(downs, drop_path_rates(drop_path, depth), strict=True)):
            number = num_windows[stage]
            window = pair([side // (strides[stage] * number) for side in size])
            blocks = [block(stage, window, index, drop) for index, drop in enumerate(rates)]
            self.stages.append(GCStage(down, blocks, query_generator(dims[stage], number)))
        self.norm = norm(dims[-1])
        self.reset_classifier(num_classes)

    def check_size(self, size: Sequence[int]) -> None:
        """Check the size of an input.

        Raises:
            ValueError: if it is not the model's.
        """
        super().check_size(size)
        if tuple(size) != self.image_size:
            raise ValueError(
                f"image size must be {self.image_size}, got {tuple(size)}; set_input_size makes it another"
            )

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class GCStage(Stage):
    """Downsample the map, compute its global queries, then apply blocks.

    Args:
        query: returns the map of the global queries, as large as a window.
    """

    def __init__(self, down: nn.Module, blocks: Iterable[nn.Module], query: nn.Module) -> None:
        super().__init__(down, blocks)
        self.query = query

    @layer
    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the map of this stage."""
        x = self.down(x)
        inputs = BlockInputs(queries=self.query(x).flatten(1, 2))
        for block in self.blocks:
            x = block(x, inputs)
        return x


class GlobalAttention(nn.Module):
    """Attention from global queries, which all windows of a map share, to the cells of each window.

    Args:
        window: rows and columns of the windows.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        window: tuple[int, int],
        qkv_bias: bool = True,
        dropout: float = 0.0,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.partition = windows(window)
        self.bias = RelativeBias(window, heads)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.kernel = kernel()
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.to_kv, parts=2)
        init_xavier(self.to_out)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each global query to the cells of each window.

        Args:
            inputs: queries (b n d), one for each cell of a window.
        """
        kv = self.to_kv(self.partition.split(x)).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        assert inputs.queries is not None
        q = split_heads(inputs.queries, self.heads)
        # Windows of one image follow each other.
        q = q[:, None].expand(-1, k.shape[0] // q.shape[0], -1, -1, -1).flatten(0, 1)
        mixed = merge_heads(self.kernel(q, k, v, self.bias()[None]))
        return self.partition.merge(self.dropout(self.to_out(mixed)), x.shape[1:3])


class FusedMBConv(nn.Module):
    """Convolve channel by channel, gate the channels, mix them by a linear layer, and add the map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = OnMap(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.GELU(),
            SqueezeExcite(dim, dim // 4, act="gelu", bias=False),
        )
        self.project = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        return x + self.project(self.depthwise(x))


def downsample(dim: int, out_dim: int, norm_eps: float) -> nn.Sequential:
    """Build what halves a map: norm, Fused-MBConv, a convolution of stride 2 and another norm."""
    halve = nn.Conv2d(dim, out_dim, 3, 2, 1, bias=False)
    norms = nn.LayerNorm(dim, eps=norm_eps), nn.LayerNorm(out_dim, eps=norm_eps)
    return nn.Sequential(norms[0], FusedMBConv(dim), OnMap(halve), norms[1])


def query_generator(dim: int, num_windows: int) -> nn.Sequential:
    """Build what computes global queries: a Fused-MBConv before each halving, one at least.

    Args:
        num_windows: windows along each side of the map, which the map of the queries is smaller by; a power
            of 2.
    """
    if num_windows == 1:
        return nn.Sequential(FusedMBConv(dim))
    halvings = num_windows.bit_length() - 1
    return nn.Sequential(
        *(part for _ in range(halvings) for part in (FusedMBConv(dim), OnMap(nn.MaxPool2d(3, 2, 1))))
    )
