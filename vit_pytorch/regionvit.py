"""RegionViT: Regional-to-Local Attention for Vision Transformers.

C.-F. Chen, R. Panda, Q. Fan 2021, arXiv:2106.02689.

Two maps go through the model side by side: a fine one of local cells, and a coarse one with one token for
each square of local cells, its region. In every block the tokens of all regions attend to each other first;
then each attends, by the same weights, with the local cells of its region, which so hear of the rest of the
image. The classifier reads the mean of the regions' tokens.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage, State
from vit_pytorch.layers_v01.attention import FusedAttention, MaskedAttention, heads_per_stage
from vit_pytorch.layers_v01.blocks import Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import OnMap, PositionGenerator
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.options import per_stage
from vit_pytorch.layers_v01.patches import pair
from vit_pytorch.layers_v01.relative import RelativeBias
from vit_pytorch.layers_v01.windows import Partition, pad_map, real_cells, windows

PATCH = 4


@dataclass(frozen=True)
class Regions:
    """How a map of local cells falls into regions.

    Args:
        grid: rows and columns of local cells.
        counts: rows and columns of regions.
        window: side of a region in cells; what the map lacks is filled up below and on the right.
    """

    grid: tuple[int, int]
    counts: tuple[int, int]
    window: int

    @property
    def partition(self) -> Partition:
        """How the filled map is parted."""
        return windows((self.window, self.window))

    @property
    def filled(self) -> tuple[int, int]:
        """Rows and columns of local cells once the regions are whole."""
        return self.counts[0] * self.window, self.counts[1] * self.window

    def join(self, local: Float[Tensor, "b h w d"], regional: Float[Tensor, "b y x d"]) -> Tensor:
        """Give (b * y * x, 1 + window^2, d): each region's token, then its cells."""
        cells = self.partition.split(pad_map(local, self.filled))
        return torch.cat([regional.flatten(0, 2)[:, None], cells], dim=1)

    def part(self, tokens: Float[Tensor, "g n d"]) -> tuple[Tensor, Tensor]:
        """Give the map of local cells and that of regions again."""
        local = self.partition.merge(tokens[:, 1:], self.filled)[:, : self.grid[0], : self.grid[1]]
        return local, tokens[:, 0].unflatten(0, (-1, *self.counts))

    def visible(self, like: Tensor) -> Bool[Tensor, "g 1 n n"] | None:
        """Tell who sees whom in the regions of one image; None for everyone.

        As in the authors' code, cells that fill a region up are hidden, but for the last region, where
        cells see each other that are both in real rows or both in real columns.
        """
        if self.grid == self.filled:
            return None
        height, width = self.filled
        rows = real_cells((self.grid[0], width), self.filled, like)
        columns = real_cells((height, self.grid[1]), self.filled, like)
        rows, columns = (F.pad(self.partition.split(x)[..., 0], (1, 0), value=True) for x in (rows, columns))
        seen = (rows & columns)[:, None].expand(-1, rows.shape[1], -1)
        last = (rows[-1] & rows[-1, :, None]) | (columns[-1] & columns[-1, :, None])
        last = last | ~last.any(dim=-1, keepdim=True)
        return torch.cat([seen[:-1], last[None]])[:, None]


class LocalBias(RelativeBias):
    """A relative bias among the cells of a region; nothing is added for the region's token, the first."""

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Look up the offset of every pair of cells."""
        return F.pad(super().compute(*window), (1, 0, 1, 0))


class RegionBlock(nn.Module):
    """Regional self-attention, local self-attention by the same weights, and a feed-forward (section 3.2).

    Args:
        attention: acts in a region.
        feedforward: transforms every token by itself.
        regional_norm: stands in front of the attention of the regions' tokens to each other.
        bias: gives what is added to the scores in a region.
        positions: acts on both maps behind the block, if anything does.
    """

    def __init__(
        self,
        attention: Residual,
        feedforward: Residual,
        regional_norm: nn.Module,
        bias: LocalBias,
        positions: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feedforward = feedforward
        self.regional_norm = regional_norm
        self.bias = bias
        self.positions = positions

    def forward(
        self, x: Float[Tensor, "g n d"], regions: Regions, visible: Bool[Tensor, "r 1 n n"] | None
    ) -> Float[Tensor, "g n d"]:
        """Apply the block to the tokens of all regions, as `Regions.join` gives them."""
        regional = x[:, 0].unflatten(0, (-1, prod(regions.counts)))
        regional = regional + self.attention.tail(self.attention.branch(self.regional_norm(regional)))
        x = torch.cat([regional.flatten(0, 1)[:, None], x[:, 1:]], dim=1)
        mask = self.bias()
        if visible is not None:
            mask = mask.masked_fill(~visible, -torch.inf).repeat(regional.shape[0], 1, 1, 1)
        x = self.feedforward(self.attention(x, mask))
        if self.positions is None:
            return x
        local, regional = map(self.positions, regions.part(x))
        return regions.join(local, regional)


class RegionEncoder(Encoder):
    """Blocks that act on tokens sorted by region.

    Args:
        block: makes the block of a layer from its index.
        depth: number of blocks.
        window: side of a region in cells.
    """

    def __init__(self, block: partial[RegionBlock], *, depth: int, window: int) -> None:
        super().__init__(block, depth=depth)
        self.window = window

    def forward(self, x: tuple[Tensor, Tensor], *context: object) -> tuple[Tensor, Tensor]:
        """Transform the map of local cells and that of regions."""
        local, regional = x
        regions = Regions(
            (local.shape[1], local.shape[2]), (regional.shape[1], regional.shape[2]), self.window
        )
        return regions.part(super().forward(regions.join(local, regional), regions, regions.visible(local)))


def lacking(size: Sequence[int], square: int) -> list[int]:
    """Give the rows and columns of pixels that an image is filled up by.

    As in the authors' code, an image that is a multiple of the square along one axis alone is filled up by a
    whole square along that one.
    """
    return [square - extent % square if any(e % square for e in size) else 0 for extent in size]


class RegionEmbedding(nn.Module):
    """Local cells and tokens of regions from the same image (section 3.1).

    Args:
        local: gives the map of local cells.
        regional: gives the map of regions, from squares of pixels that do not overlap.
        square: side of such a square; an image that is no multiple is filled up on all sides (see `lacking`).
        dropout: dropout on the local cells.
    """

    def __init__(self, local: nn.Module, regional: nn.Module, square: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.local = local
        self.regional = regional
        self.square = square
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Float[Tensor, "b h w c"]) -> tuple[Tensor, Tensor]:
        """Embed channels-last images."""
        rows, columns = lacking(images.shape[1:3], self.square)
        sides = (0, 0, columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        regional = self.regional(F.pad(images, sides) if any(sides) else images)
        return self.dropout(self.local(images)), regional


class Narrow(nn.Module):
    """Halve both maps by one depth-wise convolution that they share (section 3.1).

    Args:
        dim: channels that enter.
        out_dim: channels that leave, a multiple of `dim`.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()
        self.conv = OnMap(nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, groups=dim))

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Narrow the map of local cells and that of regions."""
        local, regional = (self.conv(self.act(self.norm(each))) for each in x)
        return local, regional


class RegionViT(HierarchicalModel):
    """The RegionViT.

    `forward_features` gives a sequence: the tokens of all regions of the last stage, then its local cells,
    with zeros for those that fill regions up where the map is no multiple of the window.

    Args:
        dim: width of a token in each stage, each a multiple of the one before.
        depth: number of blocks in each stage.
        window_size: side of a region in local cells; 7 or 14 in the paper.
        num_classes: number of logits; 0 gives the pooled embedding.
        tokenize_local_3_conv: whether three convolutions with norms embed the local cells, rather than one.
            The paper's tiny and small models have three.
        use_peg: whether a depth-wise convolution behind the first block of each stage tells both maps their
            places. The paper has it for detection.
        image_size: the customary input, one number or (height, width) in pixels; any other serves.
        channels: channels of the input.
        heads: number of heads in each stage; one for 32 channels unless told.
        mlp_ratio: width inside the feed-forward by that of a token, in all stages or each.
        qkv_bias: whether queries, keys and values have biases.
        dropout: dropout behind the linear layers of the blocks and the local embedding, in [0, 1).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
            In local attention and the feed-forward, regions lose it one by one.
        norm_eps: epsilon of the blocks' LayerNorms and the last; those at convolutions have 1e-5.

    Raises:
        ValueError: where sizes do not divide.
    """

    def __init__(
        self,
        *,
        dim: Sequence[int],
        depth: Sequence[int],
        window_size: int = 7,
        num_classes: int,
        tokenize_local_3_conv: bool = False,
        use_peg: bool = False,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        heads: Sequence[int] | None = None,
        mlp_ratio: int | Sequence[int] = 4,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        stages = len(dim)
        if len(depth) != stages:
            raise ValueError(f"depth is one for each of {stages} stages, got {tuple(depth)}")
        if any(wide % narrow for narrow, wide in pairwise(dim)):
            raise ValueError(f"the width of a stage is a multiple of the one before, got {tuple(dim)}")
        all_heads = heads_per_stage(dim, heads)
        ratios = per_stage("mlp_ratio", mlp_ratio, stages, growth=1)
        # One convolution without padding on the far side needs two pixels; three see a single one.
        least = 1 if tokenize_local_3_conv else 2
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dim,
            strides=[PATCH * 2**i for i in range(stages)],
            channels=channels,
            min_size=(least, least),
        )
        self.window = window_size
        square = PATCH * window_size
        filled = map(sum, zip(self.image_size, lacking(self.image_size, square), strict=True))
        self.num_prefix_tokens = prod([-(-extent // (square * 2 ** (stages - 1))) for extent in filled])

        local: nn.Module = OnMap(nn.Conv2d(channels, dim[0], 2 * PATCH, PATCH, PATCH - 1))
        if tokenize_local_3_conv:
            local = _three_convs(channels, dim[0])
        regional = OnMap(nn.Conv2d(channels, dim[0], square, square))
        self.stem = RegionEmbedding(local, regional, square, dropout)

        def block(stage: int, layer: int) -> RegionBlock:
            width = dim[stage]
            attention = MaskedAttention(
                width,
                heads=all_heads[stage],
                dim_head=width // all_heads[stage],
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(width, width * ratios[stage], dropout=dropout)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:stage]) + layer, sum(depth))
            tail = partial(make_tail, width, drop_path=drop)
            return RegionBlock(
                Residual(attention, norm(), tail()),
                Residual(feedforward, norm(), tail()),
                norm(),
                LocalBias(pair(window_size), all_heads[stage]),
                PositionGenerator(width, bias=False) if use_peg and layer == 0 else None,
            )

        self.stages = nn.ModuleList(
            Stage(
                Narrow(dim[i - 1], dim[i]) if i else nn.Identity(),
                RegionEncoder(partial(block, i), depth=depth[i], window=window_size),
            )
            for i in range(stages)
        )
        self.norm = nn.LayerNorm(dim[-1], eps=norm_eps)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def join(self, state: State) -> Float[Tensor, "b n d"]:
        """Give the tokens of all regions, then the local cells of whole regions, filled up by zeros."""
        local, regional = state
        filled = [count * self.window for count in regional.shape[1:3]]
        return super().join((pad_map(local, filled), regional))

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Give the mean of the regions' tokens, of which there is one for so many local cells."""
        return features[:, : features.shape[1] // (1 + self.window**2)].mean(dim=1)


def _three_convs(channels: int, dim: int) -> nn.Module:
    """Embed local cells by three convolutions, of which two halve the map.

    Raises:
        ValueError: where the width cannot be quartered.
    """
    if dim % 4:
        raise ValueError(f"three convolutions give a multiple of 4 channels, got {dim}")
    return nn.Sequential(
        OnMap(nn.Conv2d(channels, dim // 4, 3, 2, 1)),
        nn.LayerNorm(dim // 4),
        nn.GELU(),
        OnMap(nn.Conv2d(dim // 4, dim // 2, 3, 2, 1)),
        nn.LayerNorm(dim // 2),
        nn.GELU(),
        OnMap(nn.Conv2d(dim // 2, dim, 3, 1, 1)),
    )
