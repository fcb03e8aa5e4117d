"""ScalableViT: Rethinking the Context-oriented Generalization of Vision Transformer.

R. Yang, H. Ma, J. Wu, Y. Tang, X. Xiao, M. Zheng, X. Li 2022, arXiv:2203.10790.

A pyramid whose blocks take turns: attention within windows, to which a convolution of the values over the
whole map is added, and attention of every cell to a shrunken map, whose queries and keys have a width of
their own.

Family: pyramid
Differs from the paper: windows that do not divide a map are filled up, and the filling is hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import lcm

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import OnMap, PositionedBlock, PositionGenerator
from vit_pytorch.layers_v01.init import init_convs, init_linears
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import per_stage
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.windows import hide_padding, pad_map, windows

PATCH = 4


class IWSA(Attention):
    """Interactive window attention: within windows, and a depth-wise convolution of all values.

    Args:
        dim: width of a cell.
        heads: number of heads, which share the width.
        window: side of a window; 0 for one window, the map.
        qkv_bias: whether queries, keys and values have biases.
        dropout: dropout on the output.
        attend: makes the kernel that mixes the values.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        window: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attend: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__(
            dim,
            heads=heads,
            dim_head=width_of_head(dim, heads),
            qkv_bias=qkv_bias,
            dropout=dropout,
            attend=attend,
        )
        self.window = window
        self.local = OnMap(nn.Conv2d(dim, dim, 3, padding=1, groups=dim))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Let every cell attend to the cells of its window; a window is at most the map."""
        grid = x.shape[1:3]
        partition = windows([min(self.window or extent, extent) for extent in grid])
        padded = pad_map(x, partition.multiple)
        mask = None if padded is x else hide_padding(partition, grid, padded)
        q, k, v = self.project(partition.split(padded))
        mixed, values = (
            partition.merge(each.transpose(1, 2).flatten(2), padded.shape[1:3])[:, : grid[0], : grid[1]]
            for each in (self.attend(q, k, v, mask), v)
        )
        return self.dropout(self.to_out(mixed + self.local(values)))


class SSA(nn.Module):
    """Scalable attention: to a shrunken map, with queries and keys of another width.

    Args:
        dim: width of a cell.
        heads: number of heads, which share the width of the values.
        dim_key: width of a head's queries and keys. Where the map is not shrunken, it is that of the values,
            as in the authors' program, and this only scales the scores, by `dim_key ** -0.5`.
        reduction: cells that become one along each axis; 1 for the map as it is.
        qkv_bias: whether queries, keys and values have biases.
        dropout: dropout on the output.
        attend: makes the kernel that mixes the values from the factor on the scores.
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
        attend: Callable[..., nn.Module] = FusedAttention,
    ) -> None:
        super().__init__()
        self.heads = heads
        inner = dim if reduction == 1 else heads * dim_key
        self.widths = (inner, dim)
        self.to_q = Linear(dim, inner, bias=qkv_bias)
        self.to_kv: nn.Module = Linear(inner, inner + dim, bias=qkv_bias)
        if reduction > 1:
            self.to_kv = nn.Sequential(
                OnMap(nn.Conv2d(dim, dim, reduction, reduction, groups=dim)),
                nn.Linear(dim, inner),
                nn.LayerNorm(inner, eps=1e-5),
                nn.GELU(),
                self.to_kv,
            )
        self.attend = attend(scale=dim_key**-0.5)
        self.to_out = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Let every cell attend to all cells of the shrunken map."""
        parts = (self.to_q(x), *self.to_kv(x).split(self.widths, dim=-1))
        q, k, v = (each.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in parts)
        mixed = self.attend(q, k, v).transpose(1, 2).flatten(2)
        return self.dropout(self.to_out(mixed)).view_as(x)


class ScalableViT(HierarchicalModel):
    """The scalable vision transformer.

    `dim` and `heads` are one number for each stage, or that of the first stage, which then doubles from
    stage to stage; the other sizes are one for each stage, or the same for all.

    Args:
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a cell.
        heads: number of attention heads.
        depth: number of blocks of each stage; windows come first, and they alternate.
        ssa_dim_key: width of a head's queries and keys in attention to the shrunken map; the paper gives it
            as a factor on `dim / heads`. Where the map is not shrunken, the width of a head is `dim / heads`,
            as in the authors' program, and this only scales the scores, by `ssa_dim_key ** -0.5`.
        reduction_factor: cells of the map that become one along each axis of the shrunken map.
        window_size: side of a window; None for one window, the map.
        dropout: dropout after the linear layers of the blocks, and on the attention weights, in [0, 1).
        image_size: the customary input, one number or (height, width) in pixels. Others are taken, too,
            as long as each is a multiple of the last stride and of what the reductions need.
        channels: channels of the input.
        mlp_ratio: width inside the feed-forward, as a multiple of that of a cell.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights; None for `dropout`.
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        representation_size: width of the hidden layer between the pooled vector and the classifier, of which
            the paper's numbers of parameters speak; None for none.
        norm_eps: epsilon of the LayerNorms, but for that of the shrunken map.

    Raises:
        ValueError: where sizes do not divide.
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
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attn_dropout: float | None = None,
        drop_path: float = 0.0,
        representation_size: int | None = 4096,
        norm_eps: float = 1e-6,
    ) -> None:
        stages = range(len(depth))
        dims = per_stage("dim", dim, len(depth))
        all_heads = per_stage("heads", heads, len(depth))
        dim_keys = per_stage("ssa_dim_key", ssa_dim_key, len(depth), growth=1)
        reductions = per_stage("reduction_factor", reduction_factor, len(depth), growth=1)
        sides = [side or 0 for side in window_size] if isinstance(window_size, Sequence) else window_size or 0
        all_sides = per_stage("window_size", sides, len(depth), growth=1)
        strides = [PATCH * 2**stage for stage in stages]
        multiple = lcm(strides[-1], *(s * r for s, r in zip(strides, reductions, strict=True)))
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            size_multiple=(multiple, multiple),
        )
        kernel = partial(FusedAttention, dropout if attn_dropout is None else attn_dropout)

        def mixer(stage: int, layer: int) -> nn.Module:
            make: Callable[..., nn.Module] = partial(IWSA, window=all_sides[stage])
            if layer % 2:
                make = partial(SSA, dim_key=dim_keys[stage], reduction=reductions[stage])
            return make(
                dims[stage], heads=all_heads[stage], qkv_bias=qkv_bias, dropout=dropout, attend=kernel
            )

        def block(stage: int, layer: int) -> Block:
            norm = partial(nn.LayerNorm, dims[stage], eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            tail = partial(make_tail, dims[stage], drop_path=drop)
            feedforward = FeedForward(dims[stage], int(dims[stage] * mlp_ratio), dropout=dropout)
            attention = Residual(mixer(stage, layer), norm(), tail())
            parts = attention, Residual(feedforward, norm(), tail())
            return Block(*parts) if layer else PositionedBlock(*parts, PositionGenerator(dims[stage]))

        def down(stage: int) -> nn.Module:
            if stage == 0:
                conv = nn.Conv2d(channels, dims[0], 2 * PATCH - 1, PATCH, PATCH - 1)
            else:
                conv = nn.Conv2d(dims[stage - 1], dims[stage], 3, 2, 1)
            return nn.Sequential(OnMap(conv), nn.LayerNorm(dims[stage], eps=norm_eps))

        self.stages = nn.ModuleList(
            Stage(down(stage), Encoder(partial(block, stage), depth=depth[stage])) for stage in stages
        )
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        if representation_size is not None:
            self.pre_logits = nn.Sequential(
                nn.Linear(dims[-1], representation_size),
                nn.LayerNorm(representation_size, eps=norm_eps),
                nn.GELU(),
            )
            self.head_width = representation_size
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        init_convs(self)
        self.reset_classifier(num_classes)
