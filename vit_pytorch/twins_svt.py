"""Twins: Revisiting the Design of Spatial Attention in Vision Transformers.

X. Chu, Z. Tian, Y. Wang, B. Zhang, H. Ren, X. Wei, H. Xia, C. Shen 2021, arXiv:2104.13840.

In each of four stages, blocks that attend within windows alternate with blocks in which each cell attends to
few summaries of the map, made by a convolution whose stride is its kernel. A depth-wise convolution after the
first block of a stage is the only source of positions. Without windows it is Twins-PCPVT.

Family: pyramid
Differs from the paper: nothing; as in the authors' code for detection, the last windows are padded with
zeros, which the other cells see.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import (
    Attention,
    CrossAttention,
    FusedAttention,
    heads_per_stage,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates
from vit_pytorch.layers.conv import OnMap, PositionedBlock, PositionGenerator
from vit_pytorch.layers.init import init_convs, init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.windows import GroupAttention, SubsampledAttention, convolved_summary, windows
from vit_pytorch.legacy import flat_options


class TwinsSVT(HierarchicalModel):
    """Twins-SVT, the spatially separable vision transformer; without windows, Twins-PCPVT.

    Arguments that begin with `s1_`, `s2_`, `s3_` or `s4_` belong to that stage.

    Args:
        s1_emb_dim: channels.
        s1_patch_size: side of the patches of the map before that become cells.
        s1_local_patch_size: side of the windows in cells; None for a stage without windows, in which all
            blocks are global.
        s1_global_k: side of the squares of cells that one key and value summarises. The paper's models have
            8, 4, 2 and 1 from stage to stage.
        s1_depth: number of pairs of blocks, one local and one global, or of global blocks if there are no
            windows.
        peg_kernel_size: side of the convolution that encodes positions, odd.
        dropout: dropout on embedded patches and after the linear layers of the blocks, in [0, 1).
        image_size: the customary input, one number or (height, width) in pixels; any multiple of the
            stride of the last stage is accepted, if no stage's map is smaller than its `global_k`.
        heads: number of heads of each stage; default one for 32 channels.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        norm_eps: epsilon of the blocks' LayerNorms and the last; those after convolutions have 1e-5.

    Raises:
        ValueError: if sizes do not divide, or the customary input is smaller than the least.
    """

    down_in_first_block = True

    @flat_options
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
        mlp_ratio: int | Sequence[int] = 4,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        dims = (s1_emb_dim, s2_emb_dim, s3_emb_dim, s4_emb_dim)
        patches = (s1_patch_size, s2_patch_size, s3_patch_size, s4_patch_size)
        sides = (s1_local_patch_size, s2_local_patch_size, s3_local_patch_size, s4_local_patch_size)
        rates = (s1_global_k, s2_global_k, s3_global_k, s4_global_k)
        pairs = (s1_depth, s2_depth, s3_depth, s4_depth)
        all_heads = heads_per_stage(dims, heads)
        ratios = per_stage("mlp_ratio", mlp_ratio, 4, growth=1)
        strides = [prod(patches[: i + 1]) for i in range(4)]
        least = max(stride * rate for stride, rate in zip(strides, rates, strict=True))
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=strides,
            channels=channels,
            size_multiple=(strides[-1], strides[-1]),
            min_size=(least, least),
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)
        kernel = partial(FusedAttention, attn_dropout)
        drops = drop_path_rates(
            drop_path, [n if side is None else 2 * n for n, side in zip(pairs, sides, strict=True)]
        )
        for i, dim in enumerate(dims):
            side = sides[i]
            size: dict[str, Any] = {"heads": all_heads[i], "dim_head": dim // all_heads[i]}
            blocks: list[Block] = []
            for drop in drops[i]:
                attention: nn.Module
                if side is None or len(blocks) % 2:
                    summarised = CrossAttention(dim, **size, dropout=dropout, kernel=kernel)
                    # Parameters in the order of version 0.1, by which optimizer states of old runs know them.
                    for name in ("to_q", "to_kv"):
                        summarised._modules[name] = summarised._modules.pop(name)
                    attention = SubsampledAttention(summarised, convolved_summary(dim, rates[i]))
                else:
                    local = Attention(dim, **size, dropout=dropout, kernel=kernel)
                    attention = GroupAttention(local, windows((side, side)), mask_padding=False)
                feedforward = FeedForward(dim, ratios[i] * dim, dropout=dropout)
                options: dict[str, Any] = {"norm": norm, "drop_path": drop}
                if blocks:
                    blocks.append(Block(dim, attention, feedforward, **options))
                else:
                    positions = PositionGenerator(dim, peg_kernel_size)
                    blocks.append(
                        PositionedBlock(dim, attention, feedforward, positions=positions, **options)
                    )
            patch = nn.Conv2d(dims[i - 1] if i else channels, dim, patches[i], patches[i])
            down = nn.Sequential(OnMap(patch), nn.LayerNorm(dim), nn.Dropout(dropout))
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
