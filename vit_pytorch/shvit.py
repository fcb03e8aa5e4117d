"""SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design.

S. Yun, Y. Ro 2024, arXiv:2401.16456.

A small pyramid made for speed, whose first map has cells of 16 x 16 pixels. Attention has one head, on a
part of the channels; the others pass by, and a projection joins both. The first stage has convolutions and
feed-forwards only.

Family: pyramid
Differs from the paper: nothing known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, FusedAttention
from vit_pytorch.layers.blocks import drop_path_rates, layer
from vit_pytorch.layers.conv import (
    FeedForwardNorm,
    LinearNorm,
    LocalMix,
    MapGroupNorm,
    NormHead,
    narrow_stem,
    subsample,
)
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.tokens import make_classifier

# Pixels from one cell of the first stage to the next.
STRIDE = 16


class SHViT(HierarchicalModel):
    """The single-head vision transformer.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted.
        dim: channels of each stage; a multiple of 8 in the first.
        depth: number of blocks of each stage.
        attending_dim: channels of each stage that attend, fewer than all; 0 in stages without attention.
        dim_key: dimension of queries and keys.
        mlp_ratio: hidden dimension of the feed-forwards by channels.

    Raises:
        ValueError: if the numbers of stages differ, the first stage's channels are no multiple of 8, or all
            channels attend.
    """

    # What is between two stages learns at the rate of the first block after it, as in timm.
    down_in_first_block = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: Sequence[int] = (128, 224, 320),
        depth: Sequence[int] = (2, 4, 5),
        attending_dim: Sequence[int] = (0, 48, 68),
        dim_key: int = 16,
        mlp_ratio: int | float = 2,
        channels: int = 3,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        count = len(depth)
        dims = per_stage("dim", dim, count)
        parts = per_stage("attending_dim", attending_dim, count)
        if any(part >= width for part, width in zip(parts, dims, strict=True)):
            raise ValueError(f"attending_dim must be below dim {dims}, got {parts}")
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[STRIDE * 2**stage for stage in range(count)],
            channels=channels,
        )

        def local(width: int, rate: float = 0.0, *, attends: int = 0, gain: float = 1.0) -> LocalMix:
            feedforward = FeedForwardNorm(
                width, int(mlp_ratio * width), act="relu", dropout=dropout, gain=0.0
            )
            if not attends:
                return LocalMix(width, feedforward, gain=gain, drop_path=rate)
            attention = SingleHeadAttention(
                width, attends, dim_key=dim_key, kernel=partial(FusedAttention, attn_dropout)
            )
            return SHViTBlock(width, attention, feedforward, drop_path=rate)

        self.stem = narrow_stem(channels, dims[0])
        downs = [nn.Sequential(local(one), subsample(one, two), local(two)) for one, two in pairwise(dims)]
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            down = downs[stage - 1] if stage else nn.Identity()
            width, part = dims[stage], parts[stage]
            self.stages.append(Stage(down, [local(width, rate, attends=part, gain=0.0) for rate in rates]))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last stage: no norm is left to apply."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return x.permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier after batch norm; the identity for no classes."""
        like = next(self.parameters())
        head = make_classifier(self.classifier_dim, num_classes, like=like, kind=NormHead)
        return head.train(self.training)


class SHViTBlock(LocalMix):
    """A depth-wise convolution, attention and a feed-forward, each added to its input (figure 4)."""

    def __init__(self, dim: int, attention: nn.Module, feedforward: nn.Module, *, drop_path: float) -> None:
        super().__init__(dim, feedforward, gain=0.0, drop_path=drop_path)
        self.attention = attention

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        x = x + self.drop_path(self.conv(x))
        x = x + self.drop_path(self.attention(x, inputs))
        return x + self.drop_path(self.feedforward(x))


class SingleHeadAttention(nn.Module):
    """Attention of one head, on the first channels of a map; the others are kept (section 3.2, equation 1).

    Args:
        attends: channels that attend.
        dim_key: dimension of queries and keys.
    """

    def __init__(self, dim: int, attends: int, *, dim_key: int, kernel: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.parts = (attends, dim - attends)
        self.widths = (dim_key, dim_key, attends)
        self.norm = MapGroupNorm(attends)
        self.to_qkv = LinearNorm(attends, sum(self.widths))
        self.kernel = kernel()
        self.act = nn.ReLU()
        self.to_out = LinearNorm(dim, dim, gain=0.0)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Attend from each cell to all cells.

        Args:
            inputs: not used: nothing acts inside attention.
        """
        seen, kept = x.split(self.parts, dim=-1)
        q, k, v = self.to_qkv(self.norm(seen)).flatten(1, 2).unsqueeze(1).split(self.widths, dim=-1)
        mixed = self.kernel(q, k, v).reshape(seen.shape)
        return self.to_out(self.act(torch.cat([mixed, kept], dim=-1)))
