"""CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention.

W. Wang, L. Yao, L. Chen, B. Lin, D. Cai, X. He, W. Liu 2021, arXiv:2108.00154.

Each stage begins with an embedding in which every cell is seen at several scales: convolutions of different
kernels and one stride, side by side. Its blocks attend to near cells and to far ones by turns: within groups
of neighbours, then within groups of as many cells at intervals. A small network computes the position bias
from the offset of two cells, so that it serves groups of any size.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, heads_per_stage
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.options import per_stage
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.relative import DynamicBias
from vit_pytorch.layers_v01.windows import GroupAttention, Partition, dilated, windows


class CrossScaleEmbedding(nn.Module):
    """Convolutions of several kernels and one stride, whose channels stand side by side (section 3.1).

    The smallest kernel gives half of the channels, the next one a quarter, and so on; the last two give
    equally many.

    Args:
        dim: channels that enter.
        out_dim: channels that leave.
        kernel_sizes: sides of the kernels, each of the stride's parity.
        stride: distance of the cells that leave.

    Raises:
        ValueError: where the channels cannot be halved so often, or a kernel cannot be centred.
    """

    def __init__(self, dim: int, out_dim: int, *, kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        share = 2 ** (len(kernel_sizes) - 1)
        if out_dim % share:
            raise ValueError(
                f"{len(kernel_sizes)} kernels share a multiple of {share} channels, got {out_dim}"
            )
        if any(kernel < stride or (kernel - stride) % 2 for kernel in kernel_sizes):
            raise ValueError(
                f"kernels exceed their stride by even numbers, got {tuple(kernel_sizes)} and {stride}"
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
        partition: which cells see each other on larger maps.
        bias: gives what is added to the scores of a group of any extents.
    """

    bias: DynamicBias

    def __init__(self, attention: Attention, partition: Partition, bias: DynamicBias) -> None:
        super().__init__(attention, partition)
        self.bias = bias

    def arrange(self, grid: tuple[int, int]) -> tuple[Partition, Tensor | None]:
        """Give the partition of a map of this size, and the bias of its groups."""
        if min(grid) <= min(self.bias.window):
            return windows(grid), self.bias(*grid)
        return self.partition, self.bias()


class CrossFormer(HierarchicalModel):
    """The CrossFormer.

    Args:
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a cell in each stage.
        depth: number of blocks in each stage; the first, third, ... attend to near cells, the others to far.
        global_window_size: for blocks that attend to far cells, the distance of a group's neighbouring cells
            in each stage, I in the paper.
        local_window_size: side of the groups in cells, G in the paper; one number or one for each stage.
        image_size: the customary input, one number or (height, width) in pixels; any multiple of the
            product of strides serves.
        channels: channels of the input.
        cross_embed_kernel_sizes: for each stage, sides of the kernels of the embedding.
        cross_embed_strides: for each stage, stride of the embedding.
        heads: number of heads in each stage; one for 32 channels unless told.
        mlp_ratio: width inside the feed-forward by that of a cell, in all stages or each.
        qkv_bias: whether queries, keys and values have biases.
        dropout: dropout behind the linear layers of the blocks and the first embedding, in [0, 1).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide.
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
        mlp_ratio: int | Sequence[int] = 4,
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
                raise ValueError(f"{name} is one for each of {stages} stages, got {tuple(value)}")
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
        widths = (channels, *dim)

        def block(stage: int, layer: int) -> Block:
            width = dim[stage]
            attention = Attention(
                width,
                heads=all_heads[stage],
                dim_head=width // all_heads[stage],
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            group = pair(groups[stage])
            far = dilated(group, pair(global_window_size[stage]))
            bias = DynamicBias(group, all_heads[stage], dim=max(width // 16, 1))
            mix = LongShortAttention(attention, far if layer % 2 else windows(group), bias)
            feedforward = FeedForward(width, width * ratios[stage], dropout=dropout)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            tail = partial(make_tail, width, drop_path=drop)
            return Block(Residual(mix, norm(), tail()), Residual(feedforward, norm(), tail()))

        def stage(i: int) -> Stage:
            embed = CrossScaleEmbedding(
                widths[i],
                widths[i + 1],
                kernel_sizes=cross_embed_kernel_sizes[i],
                stride=cross_embed_strides[i],
            )
            # The image is embedded as it is and normed then; a map is normed first.
            norm = nn.LayerNorm(widths[max(i, 1)], eps=norm_eps)
            down = nn.Sequential(norm, embed) if i else nn.Sequential(embed, norm, nn.Dropout(dropout))
            return Stage(down, Encoder(partial(block, i), depth=depth[i]))

        self.stages = nn.ModuleList(map(stage, range(stages)))
        self.norm = nn.LayerNorm(dim[-1], eps=norm_eps)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)
