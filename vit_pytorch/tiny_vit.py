"""TinyViT: Fast Pretraining Distillation for Small Vision Transformers.

K. Wu, J. Zhang, H. Peng, M. Liu, B. Xiao, J. Fu, L. Yuan 2022, arXiv:2207.10666.

A small pyramid to be trained on the outputs of a large teacher: MBConvs in the first stage, attention within
windows in the others, with a learned bias for each absolute offset, and a depth-wise convolution between
attention and feed-forward.

Family: pyramid
Differs from the paper: as in the authors' code, a map is filled up with zeros to whole windows before the
norm, and other cells see them. The teacher's stored outputs are not part of it; `distill` has teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
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
)
from vit_pytorch.layers.blocks import Block, DropPath, FeedForward, activation, drop_path_rates, layer
from vit_pytorch.layers.conv import ConvNorm, InvertedBottleneck, OnMap
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import DistanceBias
from vit_pytorch.layers.windows import GroupAttention, crop_map, pad_map, windows

# Pixels from one cell of the first stage to the next.
STRIDE = 4


class TinyViT(HierarchicalModel):
    """The small vision transformer.

    Args:
        dim: channels of the first stage, which double from stage to stage, or of each.
        depth: number of blocks of each stage.
        heads: number of heads of each stage but the first, which has no attention; default one for 32
            channels.
        window_size: side of the windows in cells of all stages but the first, or of each of them.
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted.
        expansion: hidden channels of the first stage's blocks by channels.
        mlp_ratio: hidden dimension of the feed-forward by channels.

    Raises:
        ValueError: if the numbers of stages differ, or heads do not share the channels.
    """

    # Halving learns at the rate of its stage's first block, as in timm.
    down_in_first_block = True

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = (64, 128, 160, 320),
        depth: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] | None = None,
        window_size: int | Sequence[int] = (7, 14, 7),
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        expansion: int | float = 4,
        mlp_ratio: int | float = 4,
        act: str = "gelu",
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        dims = per_stage("dim", dim, len(depth))
        all_heads = heads_per_stage(dims[1:], heads)
        sides = per_stage("window_size", window_size, len(depth) - 1, growth=1)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[STRIDE * 2**stage for stage in range(len(depth))],
            channels=channels,
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def block(stage: int, drop: float) -> nn.Module:
            width = dims[stage]
            if stage == 0:
                return ResidualBottleneck(width, int(width * expansion), act=act, drop_path=drop)
            side, n = sides[stage - 1], all_heads[stage - 1]
            attention = Attention(
                width,
                heads=n,
                dim_head=width // n,
                dropout=dropout,
                kernel=partial(FusedAttention, attn_dropout),
            )
            bias = DistanceBias((side, side), n)
            grouped = GroupAttention(attention, windows((side, side)), bias, mask_padding=False)
            feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act)
            local = LocalBlock(width, grouped, feedforward, norm=norm, drop_path=drop)
            init_linears(local, partial(nn.init.trunc_normal_, std=0.02))
            return local

        self.stem = OnMap(
            ConvNorm(channels, dims[0] // 2, stride=2, act=act), ConvNorm(dims[0] // 2, dims[0], stride=2)
        )
        downs = [
            nn.Identity(),
            *(bottleneck(*widths, widths[1], stride=2, act=act) for widths in pairwise(dims)),
        ]
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            self.stages.append(Stage(downs[stage], [block(stage, rate) for rate in rates]))
        self.fc_norm = norm(dims[-1])
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; the norm follows the pooling."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


def bottleneck(dim: int, out_dim: int, hidden_dim: int, *, stride: int, act: str) -> InvertedBottleneck:
    """Build an inverted bottleneck whose convolution has a stride."""
    conv = partial(nn.Conv2d, kernel_size=3, stride=stride, padding=1, bias=False)
    return InvertedBottleneck(
        dim, out_dim, hidden_dim, depthwise=lambda width: conv(width, width, groups=width), act=act
    )


class ResidualBottleneck(nn.Module):
    """An inverted bottleneck around which the map passes, activated after both are added (section 3.2).

    The bottleneck starts as nothing.

    Args:
        drop_path: probability of dropping the bottleneck.
    """

    def __init__(self, dim: int, hidden_dim: int, *, act: str, drop_path: float) -> None:
        super().__init__()
        self.bottleneck = bottleneck(dim, dim, hidden_dim, stride=1, act=act)
        for parameter in self.bottleneck.norm.parameters():
            nn.init.zeros_(parameter)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act = activation(act)

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        return self.act(x + self.drop_path(self.bottleneck(x)))


class LocalBlock(Block):
    """A block with attention within windows, then a depth-wise convolution, then the feed-forward (3.2)."""

    def __init__(self, dim: int, attention: GroupAttention, feedforward: nn.Module, **options: Any) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.multiple = attention.partition.multiple
        self.local = OnMap(ConvNorm(dim, dim, groups=dim))

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        # Zeros that fill up windows become the norm's bias.
        padded = self.norm1(pad_map(x, self.multiple))
        x = x + self.drop_path(self.scale1(crop_map(self.attention(padded, inputs), x.shape[1:3])))
        x = self.local(x)
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))
