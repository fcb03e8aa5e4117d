"""DaViT: Dual Attention Vision Transformers.

M. Ding, B. Xiao, N. Codella, P. Luo, J. Wang, L. Yuan 2022, arXiv:2204.03645.

Two kinds of attention take turns: between the cells of a window, and between the channels of a head, each
of which is a token that sees the whole map. Both cost time linear in the number of cells. Depth-wise
convolutions before attention and before the feed-forward are the only source of positions.

Family: pyramid
Differs from the paper: as in the authors' code, the norm follows the pooling, and windows that do not divide
a map are filled up with zeros, which the other cells see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    FusedAttention,
    Queries,
    heads_per_stage,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, layer
from vit_pytorch.layers.conv import OnMap, PositionGenerator
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice, per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.windows import WHOLE, GroupAttention, Partition, pad_map, windows

# Pixels from one cell of the first stage to the next, and the side of the kernel that embeds them.
STRIDE, KERNEL = 4, 7


class DaViT(HierarchicalModel):
    """The dual attention vision transformer.

    Args:
        dim: channels of the first stage, which double from stage to stage; or one number for each stage.
        depth: number of pairs of blocks of each stage, the first with attention within windows, the second
            with attention between channels.
        heads: number of heads of each stage, also the groups of channels; default one for 32 channels.
        window_size: side of the windows in cells.
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted.
        mlp_ratio: hidden dimension of the feed-forward by channels, for all stages or each.
        down_kernel_size: side of the convolution that halves the map before a stage; 3 in Florence-2.
        channel_scale: scores of channels are divided by the root of the channels of a "head", as in the
            paper, or of the number of cells, "tokens", as in Florence-2 (arXiv:2311.06242).

    Raises:
        ValueError: if the numbers of stages differ, or heads do not share the channels.
    """

    # Halving learns at the rate of its stage's first block, as in timm.
    down_in_first_block = True

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (1, 1, 3, 1),
        heads: Sequence[int] | None = None,
        window_size: int = 7,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        mlp_ratio: int | float | Sequence[int | float] = 4,
        qkv_bias: bool = True,
        down_kernel_size: int = 2,
        channel_scale: Literal["head", "tokens"] = "head",
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        check_choice("channel_scale", channel_scale, ("head", "tokens"))
        dims = per_stage("dim", dim, len(depth))
        all_heads = heads_per_stage(dims, heads)
        ratios = per_stage("mlp_ratio", mlp_ratio, len(depth), growth=1)
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[STRIDE * 2**stage for stage in range(len(depth))],
            channels=channels,
        )
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def block(
            stage: int, drop: float, partition: Partition, kernel: Callable[[], nn.Module]
        ) -> DaViTBlock:
            width, n = dims[stage], all_heads[stage]
            attention = Attention(
                width, heads=n, dim_head=width // n, qkv_bias=qkv_bias, dropout=dropout, kernel=kernel
            )
            feedforward = FeedForward(width, int(width * ratios[stage]), dropout=dropout)
            grouped = GroupAttention(attention, partition, mask_padding=False)
            return DaViTBlock(width, grouped, feedforward, norm=norm, drop_path=drop)

        spatial = windows((window_size, window_size)), partial(FusedAttention, attn_dropout)
        channel = WHOLE, partial(BetweenChannels, attn_dropout, per_token=channel_scale == "tokens")
        embed = nn.Conv2d(channels, dims[0], KERNEL, STRIDE, KERNEL // 2)
        self.stem = nn.Sequential(OnMap(embed), norm(dims[0]))
        downs = (Halving(*widths, kernel_size=down_kernel_size, norm=norm) for widths in pairwise(dims))
        rates = drop_path_rates(drop_path, depth)
        for stage, down in enumerate((nn.Identity(), *downs)):
            pairs = [DualBlock(block(stage, p, *spatial), block(stage, p, *channel)) for p in rates[stage]]
            self.stages.append(Stage(down, pairs))
        self.fc_norm = norm(dims[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map; the final norm follows the pooling."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)


class DualBlock(nn.Module):
    """A block with attention within windows, then one with attention between channels (figure 3).

    Args:
        spatial: attends within windows.
        channel: attends between channels.
    """

    def __init__(self, spatial: nn.Module, channel: nn.Module) -> None:
        super().__init__()
        self.spatial = spatial
        self.channel = channel

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        return self.channel(self.spatial(x))


class DaViTBlock(Block):
    """A block in which a depth-wise convolution precedes each of the two branches."""

    def __init__(self, dim: int, attention: nn.Module, feedforward: nn.Module, **options: Any) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.positions1 = PositionGenerator(dim)
        self.positions2 = PositionGenerator(dim)

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        x = self.positions1(x)
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        x = self.positions2(x)
        return x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))


class BetweenChannels(nn.Module):
    """softmax(q^T k * scale) over the channels of a head, applied to the values (section 3.2, equation 3).

    The weights of a head are a square of its dimension, whatever the number of cells.

    Args:
        per_token: the scale is 1 / sqrt(number of cells) instead of 1 / sqrt(channels of a head).
    """

    def __init__(self, dropout: float = 0.0, *, per_token: bool = False) -> None:
        super().__init__()
        self.per_token = per_token
        self.weights = nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, q: Queries, k: Queries, v: Queries, mask: None = None) -> Queries:
        """Attend from each channel of a head to all channels of that head."""
        scale = q.shape[2 if self.per_token else 3] ** -0.5
        weights = ((q * scale).mT @ k).softmax(dim=-1)
        return v @ self.dropout(self.weights(weights)).mT


class Halving(nn.Module):
    """Norm each cell, then halve the map by a convolution of stride 2.

    Args:
        kernel_size: side of the convolution.
        norm: builds the norm.
    """

    def __init__(self, dim: int, out_dim: int, *, kernel_size: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.conv = OnMap(nn.Conv2d(dim, out_dim, kernel_size, 2, (kernel_size - 1) // 2))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Halve the map; one of odd height or width is padded by zeros."""
        return self.conv(pad_map(self.norm(x), (2, 2)))
