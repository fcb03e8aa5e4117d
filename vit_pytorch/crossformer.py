"""CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention.

W. Wang, L. Yao, L. Chen, B. Lin, D. Cai, X. He, W. Liu 2021, arXiv:2108.00154.

Each stage begins with an embedding at several scales: parallel convolutions with different kernels and one
stride. Its blocks alternate between near and far cells: attention within groups of neighbours, then within
groups of as many cells at intervals. A small network computes the position bias from the offset of two cells,
so that it serves groups of any size.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import Attention, FusedAttention, heads_per_stage
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, fx_leaf, static_size
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import DynamicBias
from vit_pytorch.layers.windows import GroupAttention, Partition, dilated, windows


class CrossFormer(HierarchicalModel):
    """The CrossFormer.

    Args:
        dim: channels of each stage.
        depth: number of blocks of each stage; the first, third, ... attend to near cells, the others to far.
        global_window_size: for blocks that attend to far cells, the distance of a group's neighbouring cells
            in each stage, I in the paper.
        local_window_size: side of the groups in cells, G in the paper; one number or one for each stage.
        image_size: the customary input, one number or (height, width) in pixels; any multiple of the
            product of strides is accepted.
        cross_embed_kernel_sizes: for each stage, sides of the kernels of the embedding.
        cross_embed_strides: for each stage, stride of the embedding.
        heads: number of heads of each stage; default one for 32 channels.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        dropout: dropout after the linear layers of the blocks and the first embedding, in [0, 1).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: Sequence[int] = (64, 128, 256, 512),
        depth: Sequence[int] = (1, 1, 8, 6),
        global_window_size: Sequence[int] = (8, 4, 2, 1),
        local_window_size: int | Sequence[int] = 7,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        cross_embed_kernel_sizes: Sequence[Sequence[int]] = ((4, 8, 16, 32), (2, 4), (2, 4), (2, 4)),
        cross_embed_strides: Sequence[int] = (4, 2, 2, 2),
        heads: Sequence[int] | None = None,
        mlp_ratio: int | float | Sequence[int | float] = 4,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        stages = len(dim)
        for name, value in (
            ("depth", depth),
            ("global_window_size", global_window_size),
            ("cross_embed_kernel_sizes", cross_embed_kernel_sizes),
            ("cross_embed_strides", cross_embed_strides),
        ):
            if len(value) != stages:
                raise ValueError(f"{name} must be one for each of {stages} stages, got {tuple(value)}")
        all_heads = heads_per_stage(dim, heads)
        groups = per_stage("local_window_size", local_window_size, stages, growth=1)
        ratios = per_stage("mlp_ratio", mlp_ratio, stages, growth=1)
        total = prod(cross_embed_strides)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[prod(cross_embed_strides[: i + 1]) for i in range(stages)],
            channels=channels,
            size_multiple=(total, total),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        drops = drop_path_rates(drop_path, depth)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "kernel": partial(FusedAttention, attn_dropout)}
        for i, width in enumerate(dim):
            group = pair(groups[i])
            near, far = windows(group), dilated(group, pair(global_window_size[i]))
            blocks: list[Block] = []
            for drop in drops[i]:
                attention = Attention(
                    width, heads=all_heads[i], dim_head=width // all_heads[i], dropout=dropout, **options
                )
                bias = DynamicBias(group, all_heads[i], dim=max(width // 16, 1))
                grouped = LongShortAttention(attention, far if len(blocks) % 2 else near, bias)
                feedforward = FeedForward(width, int(width * ratios[i]), dropout=dropout)
                blocks.append(Block(width, grouped, feedforward, norm=norm, drop_path=drop))
            embed = CrossScaleEmbedding(
                dim[i - 1] if i else channels,
                width,
                kernel_sizes=cross_embed_kernel_sizes[i],
                stride=cross_embed_strides[i],
            )
            # The embedded image is normed; later maps are normed before they are embedded.
            down = (norm(dim[i - 1]), embed) if i else (embed, norm(width), nn.Dropout(dropout))
            self.stages.append(Stage(nn.Sequential(*down), blocks))
        self.norm = norm(dim[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class CrossScaleEmbedding(nn.Module):
    """Convolutions of several kernels and one stride, their channels concatenated (section 3.1).

    The smallest kernel has half of the channels, the next one a quarter, and so on; the last two have equally
    many.

    Args:
        kernel_sizes: sides of the kernels, each of the stride's parity.
        stride: stride of all convolutions.

    Raises:
        ValueError: if the channels cannot be halved so often, or a kernel cannot be centred.
    """

    def __init__(self, dim: int, out_dim: int, *, kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        share = 2 ** (len(kernel_sizes) - 1)
        if out_dim % share:
            raise ValueError(
                f"{len(kernel_sizes)} kernels need a multiple of {share} channels, got {out_dim}"
            )
        if any(kernel < stride or (kernel - stride) % 2 for kernel in kernel_sizes):
            raise ValueError(
                f"kernels must exceed their stride by even numbers, got {tuple(kernel_sizes)} and {stride}"
            )
        widths = [out_dim >> min(i + 1, len(kernel_sizes) - 1) for i in range(len(kernel_sizes))]
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, width, kernel, stride, (kernel - stride) // 2)
            for width, kernel in zip(widths, kernel_sizes, strict=True)
        )

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Embed a channels-last map."""
        # The gradients of large kernels take many times as long where channels are last in memory, too.
        x = x.permute(0, 3, 1, 2).contiguous()
        return torch.cat([conv(x).permute(0, 2, 3, 1) for conv in self.convs], dim=-1)


class LongShortAttention(GroupAttention):
    """Attention within groups of near or of far cells (section 3.2).

    A map of which a side is not longer than that of a group is one group.

    Args:
        attention: projects, attends and merges.
        partition: which cells attend to each other on larger maps.
        bias: returns what is added to the scores of a group of any extents.
    """

    bias: DynamicBias

    def __init__(self, attention: Attention, partition: Partition, bias: DynamicBias) -> None:
        super().__init__(attention, partition)
        self.bias = bias

    def partition_for(self, grid: tuple[int, int]) -> tuple[Partition, Float[Tensor, "1 h n n"]]:
        """Return the partition of a map of this size, and the bias of its groups."""
        height, width = grid
        partition, rows, columns = fit_groups(self.partition, self.bias.window, height, width)
        return partition, self.bias(rows, columns)[None]


@fx_leaf
def fit_groups(
    partition: Partition, group: tuple[int, ...], height: int, width: int
) -> tuple[Partition, int, int]:
    """Return the partition of a map, and rows and columns of its groups.

    Args:
        partition: that of larger maps.
        group: rows and columns of its groups.
    """
    if min(height, width) > min(group):
        rows, columns = group
        return partition, rows, columns
    height, width = static_size((height, width))
    return windows((height, width)), height, width
