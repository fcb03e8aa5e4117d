"""Twins: Revisiting the Design of Spatial Attention in Vision Transformers.

X. Chu, Z. Tian, Y. Wang, B. Zhang, H. Ren, X. Wei, H. Xia, C. Shen 2021, arXiv:2104.13840.

In each of four stages, blocks that attend within windows take turns with blocks in which every cell attends
to a few that sum the map up: a convolution whose stride is its kernel makes them. A depth-wise convolution
behind the first block of a stage is all that tells cells their places. Without windows it is Twins-PCPVT.

Family: pyramid
Differs from the paper: nothing; as in the authors' code for detection, zeros fill the last windows up, and
the other cells see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import OnMap, PositionedBlock, PositionGenerator
from vit_pytorch.layers_v01.init import init_convs, init_linears
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.windows import GroupAttention, windows


class SummaryAttention(Attention):
    """Attention of all tokens to those of a summary of them.

    Takes the arguments of `Attention`, and has the projection of queries apart from that of keys and values.
    """

    def __init__(self, dim: int, *, heads: int, dim_head: int, qkv_bias: bool = True, **options: Any) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias, **options)
        del self.to_qkv
        self.to_q = Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_kv = Linear(dim, 2 * heads * dim_head, bias=qkv_bias)

    def forward(
        self, x: Float[Tensor, "b n d"], summary: Float[Tensor, "b m d"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Let every token attend to the summary, which is all tokens unless given."""
        keys = x if summary is None else summary
        q = self.to_q(x).unflatten(-1, (self.heads, self.dim_head)).transpose(1, 2)
        k, v = self.to_kv(keys).unflatten(-1, (2, self.heads, self.dim_head)).permute(2, 0, 3, 1, 4)
        return self.merge(self.attend(q, k, v))


class Subsampled(nn.Module):
    """Global sub-sampled attention: every cell sees a summary of the whole map (section 3.2, equation 3).

    Args:
        attention: of the cells to the summary.
        dim: width of a cell.
        rate: side of the squares of cells that are summed up in one. Cells beyond the last whole square are
            in no summary; a rate of 1 makes the map its own.
    """

    def __init__(self, attention: SummaryAttention, dim: int, rate: int) -> None:
        super().__init__()
        self.attention = attention
        self.summary = nn.Sequential()
        if rate > 1:
            self.summary.extend((OnMap(nn.Conv2d(dim, dim, rate, rate)), nn.LayerNorm(dim)))

    def forward(self, x: Float[Tensor, "b y x d"]) -> Float[Tensor, "b y x d"]:
        """Let every cell attend to the summary of its map."""
        summary = self.summary(x).flatten(1, 2)
        return self.attention(x.flatten(1, 2), summary).unflatten(1, x.shape[1:3])


class TwinsSVT(HierarchicalModel):
    """Twins-SVT, the spatially separable vision transformer; without windows, Twins-PCPVT.

    Arguments that begin with `s1_`, `s2_`, `s3_` or `s4_` belong to that stage.

    Args:
        num_classes: number of logits; 0 gives the pooled embedding.
        s1_emb_dim: width of a cell.
        s1_patch_size: side of the patches of the map before that become cells.
        s1_local_patch_size: side of the windows in cells; None for a stage without windows, in which all
            blocks are global.
        s1_global_k: side of the squares of cells that one key and value sums up. The paper's models have 8,
            4, 2 and 1 from stage to stage.
        s1_depth: number of pairs of blocks, one local and one global, or of global blocks where there are no
            windows.
        s2_emb_dim: see stage 1.
        s2_patch_size: see stage 1.
        s2_local_patch_size: see stage 1.
        s2_global_k: see stage 1.
        s2_depth: see stage 1.
        s3_emb_dim: see stage 1.
        s3_patch_size: see stage 1.
        s3_local_patch_size: see stage 1.
        s3_global_k: see stage 1.
        s3_depth: see stage 1.
        s4_emb_dim: see stage 1.
        s4_patch_size: see stage 1.
        s4_local_patch_size: see stage 1.
        s4_global_k: see stage 1.
        s4_depth: see stage 1.
        peg_kernel_size: side of the convolution that tells cells their places, odd.
        dropout: dropout on embedded patches and behind the linear layers of the blocks, in [0, 1).
        image_size: the customary input, one number or (height, width) in pixels; any multiple of the
            stride of the last stage serves, if no stage's map is smaller than its `global_k`.
        channels: channels of the input.
        heads: number of heads in each stage; by `dim_head` unless told.
        dim_head: width of a head; 32 unless heads are told, which then share the width of a cell.
        mlp_ratio: width inside the feed-forward by that of a cell, in all stages or each.
        qkv_bias: whether queries, keys and values have biases.
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
        norm_eps: epsilon of the blocks' LayerNorms and the last; those behind convolutions have 1e-5.

    Raises:
        ValueError: where sizes do not divide, or the customary input is smaller than the least.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        s1_emb_dim: int = 64,
        s1_patch_size: int = 4,
        s1_local_patch_size: int | None = 7,
        s1_global_k: int = 7,
        s1_depth: int = 1,
        s2_emb_dim: int = 128,
        s2_patch_size: int = 2,
        s2_local_patch_size: int | None = 7,
        s2_global_k: int = 7,
        s2_depth: int = 1,
        s3_emb_dim: int = 256,
        s3_patch_size: int = 2,
        s3_local_patch_size: int | None = 7,
        s3_global_k: int = 7,
        s3_depth: int = 5,
        s4_emb_dim: int = 512,
        s4_patch_size: int = 2,
        s4_local_patch_size: int | None = 7,
        s4_global_k: int = 7,
        s4_depth: int = 4,
        peg_kernel_size: int = 3,
        dropout: float = 0.0,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        heads: Sequence[int] | None = None,
        dim_head: int | None = None,
        mlp_ratio: int | Sequence[int] = 4,
        qkv_bias: bool = True,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        dims = (s1_emb_dim, s2_emb_dim, s3_emb_dim, s4_emb_dim)
        patches = (s1_patch_size, s2_patch_size, s3_patch_size, s4_patch_size)
        sides = (s1_local_patch_size, s2_local_patch_size, s3_local_patch_size, s4_local_patch_size)
        rates = (s1_global_k, s2_global_k, s3_global_k, s4_global_k)
        pairs = (s1_depth, s2_depth, s3_depth, s4_depth)
        depth = [n if side is None else 2 * n for n, side in zip(pairs, sides, strict=True)]
        strides = [prod(patches[: i + 1]) for i in range(4)]
        least = max(stride * rate for stride, rate in zip(strides, rates, strict=True))
        if heads is None:
            heads = [width // (dim_head or 32) for width in dims]
            if any(width % (dim_head or 32) for width in dims):
                raise ValueError(f"widths {dims} are not multiples of dim_head {dim_head or 32}")
        ratios = [mlp_ratio] * 4 if isinstance(mlp_ratio, int) else list(mlp_ratio)
        if len(heads) != 4 or len(ratios) != 4 or min(pairs) < 1:
            raise ValueError(
                "four stages have four heads and mlp_ratios and at least one block each; "
                f"got {tuple(heads)}, {tuple(ratios)} and depths {pairs}"
            )
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            size_multiple=(strides[-1], strides[-1]),
            min_size=(least, least),
        )

        def block(stage: int, layer: int) -> Block:
            width, side = dims[stage], sides[stage]
            options: dict[str, Any] = {
                "heads": heads[stage],
                "dim_head": dim_head or width_of_head(width, heads[stage]),
                "qkv_bias": qkv_bias,
                "dropout": dropout,
                "attend": partial(FusedAttention, attn_dropout),
            }
            attention: nn.Module
            if side is None or layer % 2:
                attention = Subsampled(SummaryAttention(width, **options), width, rates[stage])
            else:
                window = windows((side, side))
                attention = GroupAttention(Attention(width, **options), window, mask_padding=False)
            feedforward = FeedForward(width, ratios[stage] * width, dropout=dropout)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            tail = partial(make_tail, width, drop_path=drop)
            branches = Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail())
            if layer:
                return Block(*branches)
            return PositionedBlock(*branches, PositionGenerator(width, peg_kernel_size))

        def stage(i: int) -> Stage:
            before = dims[i - 1] if i else channels
            conv = nn.Conv2d(before, dims[i], patches[i], patches[i])
            down = nn.Sequential(OnMap(conv), nn.LayerNorm(dims[i]), nn.Dropout(dropout))
            return Stage(down, Encoder(partial(block, i), depth=depth[i]))

        self.stages = nn.ModuleList(map(stage, range(4)))
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        init_convs(self)
        self.reset_classifier(num_classes)
