"""Swin Transformer V2: Scaling Up Capacity and Resolution.

Z. Liu, H. Hu, Y. Lin, Z. Yao, Z. Xie, Y. Wei, J. Ning, Y. Cao, Z. Zhang, L. Dong, F. Wei, B. Guo 2021,
arXiv:2111.09883.

Swin's windows in blocks that stay stable as they grow: norms stand after the residual branches, and attention
compares directions, by the cosine of queries and keys at a learned temperature. A small network computes the
position bias from the logarithm of the offset, so that windows can grow after training.

Family: pyramid
Differs from the paper: as in the authors' code, keys have no bias, and the position bias is in (0, 16).
Windows are padded as in `vit_pytorch.swin`; the extra norm after every six blocks of the largest models is
built in `vit_pytorch.swin_v2_cr` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import (
    Attention,
    Direction,
    FusedAttention,
    ScaledDirection,
    heads_per_stage,
)
from vit_pytorch.layers.blocks import Block, FeedForward, PostNormBlock, drop_path_rates
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import LogSpacedBias
from vit_pytorch.layers.windows import PatchMerging, ShiftedWindowAttention, merge_cells
from vit_pytorch.swin import Pair, Sizes, patch_embedding, shifted_stages


class SwinTransformerV2(HierarchicalModel):
    """The Swin Transformer V2; arguments that are not described here are those of `SwinTransformer`.

    Args:
        pretrained_window_size: side of the windows, of all stages or each, that the weights were trained with
            and by which offsets are measured; default the model's windows.
        qkv_bias: use biases for queries and values; keys have none.
    """

    down_in_first_block = True
    undecayed = r"\.(bias\.network\.\d\.weight|q_norm\.log_factor)$"

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] | None = None,
        window_size: Sizes = 8,
        pretrained_window_size: int | Sequence[int] | None = None,
        image_size: int | Sequence[int] = 256,
        patch_size: int = 4,
        channels: int = 3,
        mlp_ratio: int | float | Sequence[int | float] = 4,
        qkv_bias: bool = True,
        patch_norm: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, heads)
        ratios = per_stage("mlp_ratio", mlp_ratio, count, growth=1)
        trained: Sequence[int | None] = [None] * count
        if pretrained_window_size is not None:
            trained = per_stage("pretrained_window_size", pretrained_window_size, count, growth=1)
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
            attention = cosine_attention(
                dims[stage],
                all_heads[stage],
                qkv_bias="qv" if qkv_bias else False,
                dropout=dropout,
                attn_dropout=attn_dropout,
            )
            side = trained[stage]
            bias = LogSpacedBias(window, all_heads[stage], pretrained=None if side is None else pair(side))
            feedforward = FeedForward(dims[stage], int(dims[stage] * ratios[stage]), dropout=dropout)
            shifted = ShiftedWindowAttention(attention, window, shift, bias)
            return PostNormBlock(dims[stage], shifted, feedforward, norm=norm, drop_path=drop)

        self.stem = patch_embedding(channels, dims[0], patch_size, norm if patch_norm else None, dropout)
        downs = [nn.Identity(), *(PostNormMerging(*widths, norm=norm) for widths in pairwise(dims))]
        grid = (size[0] // patch_size, size[1] // patch_size)
        rates = drop_path_rates(drop_path, depth)
        self.stages.extend(shifted_stages(grid, window_size, downs, rates, block))
        self.norm = norm(dims[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        start_as_identity(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)


def cosine_attention(
    dim: int,
    heads: int,
    *,
    qkv_bias: bool | Literal["qv"] = True,
    dropout: float = 0.0,
    attn_dropout: float = 0.0,
) -> Attention:
    """Build attention by the cosine of queries and keys at a learned temperature (equation 2)."""
    attention = Attention(
        dim,
        heads=heads,
        dim_head=dim // heads,
        qkv_bias=qkv_bias,
        dropout=dropout,
        kernel=partial(FusedAttention, attn_dropout, 1.0),
    )
    attention.q_norm, attention.k_norm = ScaledDirection(heads), Direction()
    return attention


def start_as_identity(model: nn.Module) -> None:
    """Start the norms after the branches of all blocks at zero, as in the authors' code."""
    for part in model.modules():
        if isinstance(part, PostNormBlock):
            for norm in (part.norm1, part.norm2):
                assert isinstance(norm.weight, Tensor)
                nn.init.zeros_(norm.weight)


class PostNormMerging(PatchMerging):
    """Merging of 2 x 2 cells whose norm acts on the result."""

    def __init__(self, dim: int, out_dim: int, *, norm: Callable[[int], nn.Module]) -> None:
        super().__init__(dim, out_dim, norm=norm)
        self.norm = norm(out_dim)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Halve the map; one of odd height or width is padded by zeros."""
        return self.norm(self.reduction(merge_cells(x)))
