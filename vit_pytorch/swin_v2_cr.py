"""Swin Transformer V2: Scaling Up Capacity and Resolution, as C. Reich and timm built it.

Z. Liu, H. Hu, Y. Lin, Z. Yao, Z. Xie, Y. Wei, J. Ning, Y. Cao, Z. Zhang, L. Dong, F. Wei, B. Guo 2021,
arXiv:2111.09883.

A second Swin V2, written from the paper: norms after the residual branches, attention by the cosine of
queries and keys at a learned temperature, and position biases that a small network computes from the
logarithm of the offset. The names of timm with `ns` have a norm at the end of each stage, in addition.

Family: pyramid
Differs from the paper: attention one query after the other, by which it saves memory, is not built; timm has
an argument for it that does nothing. Unlike in the authors' code, of which `vit_pytorch.swin_v2` has the
function, maps are normed before they are merged, keys have a bias, offsets are cells, whatever the window,
and the position bias has no bound. timm drops hidden channels of its network at a rate of 1/8 in training, in
addition. Windows are padded as in `vit_pytorch.swin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, heads_per_stage
from vit_pytorch.layers.blocks import FeedForward, PostNormBlock, drop_path_rates, layer
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import LogBias
from vit_pytorch.layers.windows import PatchMerging, ShiftedWindowAttention
from vit_pytorch.swin import Pair, Sizes, patch_embedding, shifted_stages
from vit_pytorch.swin_v2 import cosine_attention, start_as_identity

# windows along each axis of the first map
WINDOWS = 8


class SwinTransformerV2CR(HierarchicalModel):
    """The Swin Transformer V2 of timm's `swinv2_cr_*`; other arguments are those of `SwinTransformer`.

    Args:
        window_size: cells of a window, one number for all stages or one for each; default an eighth of the
            first map, which another `image_size` changes.
        position_dim: hidden dimension of the network that computes the position biases.
        norm_period: after so many blocks of a stage, again and again, comes a norm, as in the paper's largest
            models (section 3.2); default none. One always follows the last block of all.
        norm_stages: one follows the last block of each stage.

    Raises:
        ValueError: if the numbers of stages differ, or heads do not share the channels.
    """

    down_in_first_block = True
    undecayed = r"\.q_norm\.log_factor$"

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] | None = None,
        window_size: Sizes | None = None,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 4,
        channels: int = 3,
        mlp_ratio: int | float | Sequence[int | float] = 4,
        position_dim: int = 384,
        norm_period: int | None = None,
        norm_stages: bool = False,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, heads)
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

        def block(stage: int, window: Pair, shift: Pair, drop: float) -> NormedBlock:
            attention = cosine_attention(
                dims[stage], all_heads[stage], dropout=dropout, attn_dropout=attn_dropout
            )
            bias = LogBias(window, all_heads[stage], dim=position_dim)
            feedforward = FeedForward(dims[stage], int(dims[stage] * ratios[stage]), dropout=dropout)
            shifted = ShiftedWindowAttention(attention, window, shift, bias)
            return NormedBlock(dims[stage], shifted, feedforward, norm=norm, drop_path=drop)

        self.stem = patch_embedding(channels, dims[0], patch_size, norm, dropout)
        downs = [nn.Identity(), *(PatchMerging(*widths, norm=norm) for widths in pairwise(dims))]
        grid = (size[0] // patch_size, size[1] // patch_size)
        rates = drop_path_rates(drop_path, depth)
        if window_size is None:
            window_size = [[max(side // WINDOWS, 1) for side in grid]] * count
        self.stages.extend(shifted_stages(grid, window_size, downs, rates, block))
        for stage, width in enumerate(dims):
            blocks = cast(Stage, self.stages[stage]).blocks
            for number, part in enumerate(blocks, 1):
                ends = number == depth[stage] and (norm_stages or stage == count - 1)
                if ends or (norm_period is not None and number % norm_period == 0):
                    part.norm_out = norm(width)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        start_as_identity(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; its last block ends with the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


class NormedBlock(PostNormBlock):
    """A block of Swin V2 that can end with a norm of the sum, `norm_out`."""

    def __init__(self, dim: int, attention: nn.Module, feedforward: nn.Module, **options: Any) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.norm_out: nn.Module = nn.Identity()

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform a channels-last map."""
        x = x + self.drop_path(self.norm1(self.attention(x, inputs)))
        return self.norm_out(x + self.drop_path(self.norm2(self.feedforward(x))))
