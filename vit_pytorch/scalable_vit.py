"""ScalableViT: Rethinking the Context-oriented Generalization of Vision Transformer.

R. Yang, H. Ma, J. Wu, Y. Tang, X. Xiao, M. Zheng, X. Li 2022, arXiv:2203.10790.

A pyramid whose blocks alternate: attention within windows, to which a convolution of the values over the
whole map is added, and attention from each cell to a reduced map, whose queries and keys have a dimension of
their own.

Family: pyramid
Differs from the paper: windows that do not divide a map are padded, and the padding is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import lcm
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    FusedAttention,
    head_dim,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, fx_leaf, static_size
from vit_pytorch.layers.conv import OnMap, PositionedBlock, PositionGenerator
from vit_pytorch.layers.init import init_convs, init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.windows import Partition, crop_map, mask_padding, pad_map, windows

PATCH = 4


class ScalableViT(HierarchicalModel):
    """The scalable vision transformer.

    `dim` and `heads` are one number for each stage, or that of the first stage, which then doubles from
    stage to stage; the other sizes are one for each stage, or the same for all.

    Args:
        depth: number of blocks of each stage; windows come first, and they alternate.
        ssa_dim_key: head dimension of queries and keys in attention to the reduced map; the paper states it
            as a factor on `dim / heads`. If the map is not reduced, the head dimension is `dim / heads`, as
            in the authors' code, and this only scales the scores, by `ssa_dim_key ** -0.5`.
        reduction_factor: cells of the map that become one along each axis of the reduced map.
        window_size: side of a window; None for one window, the map.
        dropout: dropout after the linear layers of the blocks, and on the attention weights, in [0, 1).
        image_size: the customary input, one number or (height, width) in pixels; any multiple of the last
            stride and of what the reductions need is accepted.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        attn_dropout: dropout on the attention weights; default `dropout`.
        representation_size: dimension of the hidden layer between the pooled vector and the classifier, which
            the paper's numbers of parameters include; None for no such layer.
        norm_eps: epsilon of the LayerNorms, except that of the reduced map.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int],
        heads: int | Sequence[int],
        depth: Sequence[int],
        ssa_dim_key: int | Sequence[int],
        reduction_factor: int | Sequence[int],
        window_size: int | Sequence[int | None] | None = None,
        dropout: float = 0.0,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        mlp_ratio: int | float | Sequence[int | float] = 4.0,
        qkv_bias: bool = True,
        attn_dropout: float | None = None,
        drop_path: float = 0.0,
        representation_size: int | None = 4096,
        norm_eps: float = 1e-6,
    ) -> None:
        dims = per_stage("dim", dim, len(depth))
        all_heads = per_stage("heads", heads, len(depth))
        dim_keys = per_stage("ssa_dim_key", ssa_dim_key, len(depth), growth=1)
        ratios = per_stage("mlp_ratio", mlp_ratio, len(depth), growth=1)
        reductions = per_stage("reduction_factor", reduction_factor, len(depth), growth=1)
        sides = [side or 0 for side in window_size] if isinstance(window_size, Sequence) else window_size or 0
        all_sides = per_stage("window_size", sides, len(depth), growth=1)
        strides = [PATCH * 2**stage for stage in range(len(depth))]
        multiple = lcm(strides[-1], *(s * r for s, r in zip(strides, reductions, strict=True)))
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            size_multiple=(multiple, multiple),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, dropout if attn_dropout is None else attn_dropout)
        drops = drop_path_rates(drop_path, depth)
        for i, width in enumerate(dims):
            options: dict[str, Any] = {
                "heads": all_heads[i],
                "qkv_bias": qkv_bias,
                "dropout": dropout,
                "kernel": kernel,
            }
            blocks: list[Block] = []
            for drop in drops[i]:
                attention: nn.Module
                if len(blocks) % 2:
                    attention = SSA(width, dim_key=dim_keys[i], reduction=reductions[i], **options)
                else:
                    attention = IWSA(width, window=all_sides[i], **options)
                parts = attention, FeedForward(width, int(width * ratios[i]), dropout=dropout)
                if blocks:
                    blocks.append(Block(width, *parts, norm=norm, drop_path=drop))
                else:
                    positions = PositionGenerator(width)
                    blocks.append(
                        PositionedBlock(width, *parts, positions=positions, norm=norm, drop_path=drop)
                    )
            before, kernel_size, stride = (dims[i - 1], 3, 2) if i else (channels, 2 * PATCH - 1, PATCH)
            conv = nn.Conv2d(before, width, kernel_size, stride, kernel_size // 2)
            self.stages.append(Stage(nn.Sequential(OnMap(conv), norm(width)), blocks))
        self.norm = norm(dims[-1])
        if representation_size is not None:
            self.pre_logits = nn.Sequential(
                nn.Linear(dims[-1], representation_size), norm(representation_size), nn.GELU()
            )
            self.classifier_dim = representation_size
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


class IWSA(Attention):
    """Interactive window attention: within windows, plus a depth-wise convolution of all values.

    Args:
        window: side of a window; 0 for one window, the map.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        window: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        kernel: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        width = head_dim(dim, heads)
        super().__init__(dim, heads=heads, dim_head=width, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel)
        self.window = window
        self.local = OnMap(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to the cells of its window, and add the convolution of the values."""
        height, width = x.shape[1:3]
        partition = fit_windows(self.window, height, width)
        padded = pad_map(x, partition.multiple)
        mask = mask_padding(partition, (height, width), padded, None)
        q, k, v = self.project(partition.split(padded))
        mixed, values = (
            crop_map(partition.merge(merge_heads(each), padded.shape[1:3]), (height, width))
            for each in (self.kernel(q, k, v, mask), v)
        )
        return self.dropout(self.to_out(mixed + self.local(values)))


@fx_leaf
def fit_windows(window: int, height: int, width: int) -> Partition:
    """Return the windows of a map, which are at most the map.

    Args:
        window: side of a window; 0 for one window.
    """
    height, width = static_size((height, width))
    return windows((min(window or height, height), min(window or width, width)))


class SSA(nn.Module):
    """Scalable attention: to a reduced map, with queries and keys of another dimension.

    Args:
        dim_key: head dimension of queries and keys. If the map is not reduced, it is that of the values, as
            in the authors' code, and this only scales the scores, by `dim_key ** -0.5`.
        reduction: cells that become one along each axis; 1 for the map as it is.
        kernel: builds the kernel that attends, from the factor on the scores.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_key: int,
        reduction: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        kernel: Callable[..., nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        inner = dim if reduction == 1 else heads * dim_key
        self.widths = (inner, dim)
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_kv: nn.Module = nn.Linear(inner, inner + dim, bias=qkv_bias)
        if reduction > 1:
            self.to_kv = nn.Sequential(
                OnMap(nn.Conv2d(dim, dim, reduction, reduction, groups=dim)),
                nn.Linear(dim, inner),
                nn.LayerNorm(inner, eps=1e-5),
                nn.GELU(),
                self.to_kv,
            )
        self.kernel = kernel(scale=dim_key**-0.5)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to all cells of the reduced map."""
        k, v = self.to_kv(x).split(self.widths, dim=-1)
        q, k, v = (split_heads(each.flatten(1, 2), self.heads) for each in (self.to_q(x), k, v))
        return self.dropout(self.to_out(merge_heads(self.kernel(q, k, v)))).view_as(x)
