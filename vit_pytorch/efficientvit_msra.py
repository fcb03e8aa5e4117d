"""EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention.

X. Liu, H. Peng, N. Zheng, Y. Yang, H. Hu, Y. Yuan 2023, arXiv:2305.07027.

A small pyramid made for speed. Few layers attend: each stands between two pairs of a depth-wise convolution
and a feed-forward. Heads have channels of their own, and each adds what the head before it found to its
input. Batch norm follows every layer.

Family: pyramid
Differs from the paper: nothing known. As in the authors' code, zeros fill maps up to whole windows, and the
other cells see them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, FusedAttention, head_dim
from vit_pytorch.layers.blocks import DropPath, drop_path_rates, layer
from vit_pytorch.layers.conv import (
    ConvNorm,
    FeedForwardNorm,
    LinearNorm,
    LocalMix,
    NormHead,
    OnMap,
    narrow_stem,
    subsample,
)
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import DistanceBias
from vit_pytorch.layers.tokens import make_classifier
from vit_pytorch.layers.windows import crop_map, pad_map, windows

# Pixels from one cell of the first stage to the next.
STRIDE = 16


class EfficientViT(HierarchicalModel):
    """The memory-efficient vision transformer.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted.
        dim: channels of each stage; a multiple of 8 in the first.
        depth: number of blocks of each stage.
        heads: number of heads of each stage, which share the channels.
        dim_key: head dimension of queries and keys, for all stages or each.
        kernel_sizes: side of the convolution of the queries, odd, of each head; those of a stage with fewer
            heads are the first.
        window_size: side of the windows in cells, for all stages or each. That of a stage is at most the
            shorter side of its map for the customary input.
        mlp_ratio: hidden dimension of the feed-forwards by channels.

    Raises:
        ValueError: if the numbers of stages or heads differ, heads do not share the channels, a kernel is
            even, or the customary input is smaller than a patch of 16 x 16 pixels.
    """

    # What is between two stages learns at the rate of the first block after it, as in timm.
    down_in_first_block = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: Sequence[int] = (64, 128, 192),
        depth: Sequence[int] = (1, 2, 3),
        heads: Sequence[int] = (4, 4, 4),
        dim_key: int | Sequence[int] = 16,
        kernel_sizes: Sequence[int] = (5, 5, 5, 5),
        window_size: int | Sequence[int] = 7,
        mlp_ratio: int | float = 2,
        channels: int = 3,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        count = len(dim)
        if not count == len(depth) == len(heads):
            raise ValueError(
                "dim, depth and heads must be one for each stage, got "
                f"{tuple(dim)}, {tuple(depth)} and {tuple(heads)}"
            )
        if len(kernel_sizes) < max(heads) or any(side % 2 == 0 for side in kernel_sizes):
            raise ValueError(
                f"kernel_sizes must be odd, one for each of {max(heads)} heads, got {tuple(kernel_sizes)}"
            )
        keys = per_stage("dim_key", dim_key, count, growth=1)
        sides = per_stage("window_size", window_size, count, growth=1)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[STRIDE * 2**stage for stage in range(count)],
            channels=channels,
        )
        if min(self.image_size) < STRIDE:
            raise ValueError(f"image_size must be at least {STRIDE}, got {self.image_size}")
        # whole cells of the first map, as published tables of biases have them
        cells = min(self.image_size) // STRIDE
        kernel = partial(FusedAttention, attn_dropout)

        def local(width: int, rate: float = 0.0, *, gain: float = 1.0) -> LocalMix:
            feedforward = FeedForwardNorm(
                width, int(mlp_ratio * width), act="relu", dropout=dropout, gain=0.0
            )
            return LocalMix(width, feedforward, gain=gain, drop_path=rate)

        def block(stage: int, rate: float) -> SandwichBlock:
            width = dim[stage]
            attention = CascadedGroupAttention(
                width,
                heads=heads[stage],
                dim_key=keys[stage],
                kernel_sizes=kernel_sizes,
                window_size=min(sides[stage], -(-cells // 2**stage)),
                kernel=kernel,
            )
            around = [local(width, rate, gain=0.0) for _ in range(2)]
            return SandwichBlock(around[0], attention, around[1], drop_path=rate)

        self.stem = narrow_stem(channels, dim[0])
        downs = [nn.Sequential(local(one), subsample(one, two), local(two)) for one, two in pairwise(dim)]
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            down = downs[stage - 1] if stage else nn.Identity()
            self.stages.append(Stage(down, [block(stage, rate) for rate in rates]))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage: no norm is left to apply."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier after batch norm; the identity for no classes."""
        like = next(self.parameters())
        head = make_classifier(self.classifier_dim, num_classes, like=like, kind=NormHead)
        return head.train(self.training)


class SandwichBlock(nn.Module):
    """Attention between two layers that see each cell and its neighbours only (the sandwich layout).

    Args:
        before: acts on the map first.
        attention: mixes cells of a window; added to its input.
        after: acts on the map last.
    """

    def __init__(
        self, before: nn.Module, attention: nn.Module, after: nn.Module, *, drop_path: float
    ) -> None:
        super().__init__()
        self.before = before
        self.attention = attention
        self.after = after
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        x = self.before(x)
        x = x + self.drop_path(self.attention(x, inputs))
        return self.after(x)


class CascadedGroupAttention(nn.Module):
    """Attention within windows whose heads have channels of their own, each after the one before it.

    Args:
        dim_key: head dimension of queries and keys; values have that of the channels of a head.
        kernel_sizes: side of the convolution of the queries of each head.
        window_size: side of a window in cells.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_key: int,
        kernel_sizes: Sequence[int],
        window_size: int,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        width = head_dim(dim, heads)
        self.window = (window_size, window_size)
        self.heads = nn.ModuleList(
            CascadedHead(width, dim_key, kernel_size=kernel_sizes[i], kernel=kernel) for i in range(heads)
        )
        self.bias = DistanceBias(self.window, heads)
        self.act = nn.ReLU()
        self.to_out = LinearNorm(dim, dim, gain=0.0)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend within windows, one head after the other, activate, and project."""
        partition = windows(self.window)
        padded = pad_map(x, self.window)
        groups = partition.split(padded).unflatten(1, self.window).chunk(len(self.heads), dim=-1)
        bias = self.bias()
        found = [self.heads[0](groups[0], bias[:1])]
        for i in range(1, len(self.heads)):
            found.append(self.heads[i](groups[i] + found[-1], bias[i : i + 1]))
        mixed = self.to_out(self.act(torch.cat(found, dim=-1)))
        return crop_map(partition.merge(mixed.flatten(1, 2), padded.shape[1:3]), x.shape[1:3])


class CascadedHead(nn.Module):
    """A head of attention over a window, whose queries are convolved.

    Args:
        dim: channels of input and output.
        dim_key: dimension of queries and keys.
        kernel_size: side of the convolution.
    """

    def __init__(self, dim: int, dim_key: int, *, kernel_size: int, kernel: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.widths = (dim_key, dim_key, dim)
        self.to_qkv = LinearNorm(dim, sum(self.widths))
        self.conv = OnMap(ConvNorm(dim_key, dim_key, kernel_size, groups=dim_key))
        self.kernel = kernel()

    def forward(self, x: Float[Tensor, "b h w d"], bias: Float[Tensor, "1 n m"]) -> Float[Tensor, "b h w d"]:
        """Attend from each cell of a window to all of it.

        Args:
            bias: what is added to the scores.
        """
        q, k, v = self.to_qkv(x).split(self.widths, dim=-1)
        q, k, v = (part.flatten(1, 2).unsqueeze(1) for part in (self.conv(q), k, v))
        return self.kernel(q, k, v, bias).squeeze(1).view_as(x)
