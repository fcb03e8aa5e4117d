"""SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision Applications.

A. Shaker, M. Maaz, H. Rasheed, S. Khan, M.-H. Yang, F. S. Khan 2023, arXiv:2303.15446.

A pyramid whose every stage ends with attention in time linear in the number of cells: a learned vector weighs
the queries, their weighted sum is one query for the whole map, which multiplies the keys. There are no
values. The other blocks are a depth-wise convolution and a feed-forward.

Family: pyramid
Differs from the paper: nothing. The scale of the scores cancels where they are normed, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel, Stage
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import DropPath, FeedForward, drop_path_rates, layer
from vit_pytorch.layers.conv import ConvNeXt, ConvNorm, MapBatchNorm, OnMap, quartering_stem
from vit_pytorch.layers.init import init_convs, init_xavier
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.tokens import OneTokenHead, make_classifier

# Pixels from one cell of the first stage to the next.
STRIDE = 4


class SwiftFormer(HierarchicalModel):
    """The pyramid of convolutions and efficient additive attention.

    Args:
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted.
        dim: channels of each stage; even in the first.
        depth: number of blocks of each stage, the last of which attends.
        mlp_ratio: hidden dimension of the feed-forwards by channels.
        layer_scale: initial factors of the branches of a block that attends; those of convolutions start at
            1. None for none.
        distilled: have two classifiers, the second of which is trained on a teacher's outputs; the logits are
            the mean of both, also in training (see `OneTokenHead.separate`).

    Raises:
        ValueError: if the numbers of stages differ, or the first stage has an odd number of channels.
    """

    # Halving learns at the rate of its stage's first block, and factors of branches decay, as in timm.
    down_in_first_block = True
    undecayed = r"(?!)"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 224,
        num_classes: int,
        dim: Sequence[int],
        depth: Sequence[int],
        mlp_ratio: float = 4.0,
        channels: int = 3,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-5,
        distilled: bool = False,
    ) -> None:
        if len(dim) != len(depth):
            raise ValueError(f"dim and depth must be one for each stage, got {tuple(dim)} and {tuple(depth)}")
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[STRIDE * 2**stage for stage in range(len(dim))],
            channels=channels,
        )
        self.distilled = distilled
        self.stem = quartering_stem(channels, dim[0], act="relu")
        downs = (OnMap(ConvNorm(*widths, stride=2, bias=True)) for widths in pairwise(dim))
        scaled = layer_scale is not None
        for width, down, rates in zip(
            dim, (nn.Identity(), *downs), drop_path_rates(drop_path, depth), strict=True
        ):
            hidden = int(width * mlp_ratio)
            blocks: list[nn.Module] = [
                conv_block(width, hidden, dropout=dropout, scaled=scaled, drop_path=rate)
                for rate in rates[:-1]
            ]
            blocks.append(
                SwiftBlock(
                    width,
                    conv_block(width, width, scaled=scaled),
                    AdditiveAttention(width),
                    nn.Sequential(MapBatchNorm(width), FeedForward(width, hidden, dropout=dropout)),
                    layer_scale=layer_scale,
                    drop_path=rates[-1],
                )
            )
            self.stages.append(Stage(down, blocks))
        self.norm = MapBatchNorm(dim[-1])
        init_convs(self)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the last map after the final norm."""
        x = self.embed(images)
        for stage in self.stages:
            x = stage(x)
        return self.norm(x).permute(0, 3, 1, 2)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a classifier, or two if the model is distilled; the identity for no classes."""
        kind = OneTokenHead if self.distilled else nn.Linear
        return make_classifier(self.classifier_dim, num_classes, like=next(self.parameters()), kind=kind)


class SwiftBlock(nn.Module):
    """Local representation, additive attention and a feed-forward, each added to its input (figure 3).

    Args:
        local: convolves the map, and adds it.
        feedforward: norms each cell, and transforms it.
        layer_scale: see `SwiftFormer`.
    """

    def __init__(
        self,
        dim: int,
        local: nn.Module,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        layer_scale: float | None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.local = local
        self.attention = attention
        self.scale1 = nn.Identity() if layer_scale is None else MapScale(dim, layer_scale)
        self.feedforward = feedforward
        self.scale2 = nn.Identity() if layer_scale is None else MapScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Transform the map."""
        x = self.local(x)
        x = x + self.drop_path(self.scale1(self.attention(x, inputs)))
        return x + self.drop_path(self.scale2(self.feedforward(x)))


def conv_block(
    dim: int, hidden_dim: int, *, dropout: float = 0.0, scaled: bool, drop_path: float = 0.0
) -> ConvNeXt:
    """Build a depth-wise convolution with batch norm, and a feed-forward, added to their input.

    Args:
        scaled: multiply the branch's channels by learned factors.
    """
    return ConvNeXt(
        OnMap(ConvNorm(dim, dim, groups=dim, bias=True)),
        nn.Identity(),
        FeedForward(dim, hidden_dim, dropout=dropout),
        MapScale(dim, 1.0) if scaled else nn.Identity(),
        nn.Identity(),
        drop_path=drop_path,
    )


class AdditiveAttention(nn.Module):
    """Efficient additive attention: one query for all, times the key of each cell (section 3.2, eqs. 6-8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_scores = nn.Linear(dim, 1, bias=False)
        self.project = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        for linear in (self.to_q, self.to_k, self.project, self.to_out):
            init_xavier(linear)
        nn.init.normal_(self.to_scores.weight)

    def forward(
        self, x: Float[Tensor, "b h w d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b h w d"]:
        """Mix the cells of a map.

        Args:
            inputs: not used: nothing acts inside attention.
        """
        q, k = F.normalize(self.to_q(x), dim=-1), F.normalize(self.to_k(x), dim=-1)
        scores = F.normalize(self.to_scores(q).flatten(1, 2), dim=1)
        query = (scores * q.flatten(1, 2)).sum(dim=1)[:, None, None]
        return self.to_out(self.project(query * k) + q)


class MapScale(nn.Module):
    """Multiply each channel of a map by a learned factor, which has axes of the map, and so weight decay."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, 1, dim), init))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Scale the channels."""
        return x * self.gamma
