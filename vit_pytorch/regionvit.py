"""RegionViT: Regional-to-Local Attention for Vision Transformers.

C.-F. Chen, R. Panda, Q. Fan 2021, arXiv:2106.02689.

Two maps pass through the model in parallel: a fine one of local cells, and a coarse one with one token for
each square of local cells, its region. In each block the regions' tokens attend to each other first; then
each token attends, by the same weights, with the local cells of its region, which so get information from the
rest of the image. The classifier reads the mean of the regions' tokens.

Family: pyramid
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import Attention, BlockInputs, FusedAttention, heads_per_stage
from vit_pytorch.layers.blocks import Block, FeedForward, collect_outputs, drop_path_rates, fx_leaf, layer
from vit_pytorch.layers.conv import OnMap, PositionGenerator
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import per_stage
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.relative import RelativeBias
from vit_pytorch.layers.windows import Partition, crop_map, pad_map, real_cells, windows

PATCH = 4
# Local cells and regions.
Maps = tuple[Float[Tensor, "b h w d"], Float[Tensor, "b y x d"]]


class RegionViT(HierarchicalModel):
    """The RegionViT.

    `forward_features` returns a sequence: the tokens of all regions of the last stage, then its local cells,
    with zeros for those that pad regions if the map is not a multiple of the window.

    Args:
        dim: token dimension of each stage, each a multiple of the one before.
        window_size: side of a region in local cells; 7 or 14 in the paper.
        tokenize_local_3_conv: embed the local cells by three convolutions with norms, instead of one. The
            paper's tiny and small models have three.
        use_peg: encode positions on both maps by a depth-wise convolution after the first block of each
            stage. The paper has it for detection.
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted.
        heads: number of heads of each stage; default one for 32 channels.
        mlp_ratio: hidden dimension of the feed-forward by token dimension, for all stages or each.
        dropout: dropout after the linear layers of the blocks and the local embedding, in [0, 1).
        drop_path: probability of dropping a residual branch at the last block, in [0, 1); rises from 0. In
            local attention and the feed-forward, it is dropped for each region separately.
        norm_eps: epsilon of the blocks' LayerNorms and the last; those at convolutions have 1e-5.
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
            raise ValueError(f"depth must be one for each of {stages} stages, got {tuple(depth)}")
        if any(wide % narrow for narrow, wide in pairwise(dim)):
            raise ValueError(f"dim must be a multiple of that of the stage before, got {tuple(dim)}")
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
        padded = map(sum, zip(self.image_size, missing_pixels(self.image_size, square), strict=True))
        self.num_prefix_tokens = prod([-(-extent // (square * 2 ** (stages - 1))) for extent in padded])

        local: nn.Module = OnMap(nn.Conv2d(channels, dim[0], 2 * PATCH, PATCH, PATCH - 1))
        if tokenize_local_3_conv:
            local = three_convs(channels, dim[0])
        regional = OnMap(nn.Conv2d(channels, dim[0], square, square))
        self.stem = RegionEmbedding(local, regional, square, dropout)

        norm = partial(nn.LayerNorm, eps=norm_eps)
        options: dict[str, Any] = {"qkv_bias": qkv_bias, "kernel": partial(FusedAttention, attn_dropout)}
        for i, rates in enumerate(drop_path_rates(drop_path, depth)):
            blocks: list[RegionBlock] = []
            for rate in rates:
                attention = Attention(
                    dim[i], heads=all_heads[i], dim_head=dim[i] // all_heads[i], dropout=dropout, **options
                )
                block = RegionBlock(
                    dim[i],
                    attention,
                    FeedForward(dim[i], dim[i] * ratios[i], dropout=dropout),
                    bias=LocalBias(pair(window_size), all_heads[i]),
                    positions=PositionGenerator(dim[i], bias=False) if use_peg and not blocks else None,
                    norm=norm,
                    drop_path=rate,
                )
                blocks.append(block)
            down = Downsample(dim[i - 1], dim[i]) if i else nn.Identity()
            self.stages.append(RegionStage(down, blocks, window_size))
        self.norm = norm(dim[-1])
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the map of each stage is: module, num_chs, reduction (stride in pixels)."""
        return [{**info, "module": f"{info['module']}.local"} for info in super().feature_info]

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the regions' tokens, then the local cells, padded to whole regions, after the final norm."""
        local, regional = self.embed(images)
        for stage in self.stages:
            local, regional = stage(local, regional)
        local, regional = self.norm(local), self.norm(regional)
        rows, columns = regional.shape[1:3]
        local = pad_map(local, (rows * self.window, columns * self.window))
        return torch.cat([regional.flatten(1, 2), local.flatten(1, 2)], dim=1)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Return the mean of the regions' tokens, of which there is one for so many local cells."""
        return features[:, : features.shape[1] // (1 + self.window**2)].mean(dim=1)

    def collect_layers(
        self, images: Float[Tensor, "b c h w"], layers: Sequence[int], *, stop_early: bool = False
    ) -> tuple[Tensor | None, list[Any]]:
        """Compute the final features, and the map and the regions' tokens after some stages."""
        names = [f"stages.{i}.{part}" for i in layers for part in ("regional", "local")]
        features = None
        with collect_outputs(map(self.get_submodule, names), stop_early=stop_early) as outputs:
            features = self.forward_features(images)
        return features, list(zip(outputs[1::2], outputs[::2], strict=True))

    def split_prefix(
        self, output: Any, stage: int, size: Sequence[int]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b k d"]]:
        """Return the map and the regions' tokens, which `collect_layers` returns separately."""
        local, regional = output
        return local, regional.flatten(1, 2)


class RegionEmbedding(nn.Module):
    """Local cells and tokens of regions from the same image (section 3.1).

    Args:
        local: returns the map of local cells.
        regional: returns the map of regions, from squares of pixels that do not overlap.
        square: side of such a square; other images are padded on all sides (see `missing_pixels`).
    """

    def __init__(self, local: nn.Module, regional: nn.Module, square: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.local = local
        self.regional = regional
        self.square = square
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, images: Float[Tensor, "b h w c"]
    ) -> tuple[Float[Tensor, "b _ _ d"], Float[Tensor, "b _ _ d"]]:
        """Embed channels-last images."""
        return self.dropout(self.local(images)), self.regional(pad_to_squares(images, self.square))


def missing_pixels(size: Sequence[int], square: int) -> list[int]:
    """Return the rows and columns of pixels by which an image is padded.

    As in the authors' code, an image that is a multiple of the square along one axis only is padded by a
    whole square along that one.
    """
    return [square - extent % square if any(e % square for e in size) else 0 for extent in size]


@fx_leaf
def pad_to_squares(images: Float[Tensor, "b h w c"], square: int) -> Float[Tensor, "b y x c"]:
    """Pad images with zeros on all sides; see `missing_pixels`."""
    rows, columns = missing_pixels(images.shape[1:3], square)
    sides = (0, 0, columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(images, sides) if any(sides) else images


def three_convs(channels: int, dim: int) -> nn.Module:
    """Build the embedding of local cells by three convolutions, of which two halve the map.

    Raises:
        ValueError: if `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"three convolutions need a multiple of 4 channels, got {dim}")
    return nn.Sequential(
        OnMap(nn.Conv2d(channels, dim // 4, 3, 2, 1)),
        nn.LayerNorm(dim // 4),
        nn.GELU(),
        OnMap(nn.Conv2d(dim // 4, dim // 2, 3, 2, 1)),
        nn.LayerNorm(dim // 2),
        nn.GELU(),
        OnMap(nn.Conv2d(dim // 2, dim, 3, 1, 1)),
    )


class Downsample(nn.Module):
    """Halve a map by a depth-wise convolution; `out_dim` is a multiple of `dim` (section 3.1)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()
        self.conv = OnMap(nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, groups=dim))

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b y x e"]:
        """Halve the map."""
        return self.conv(self.act(self.norm(x)))


class RegionStage(nn.Module):
    """Downsample both maps by `down`, which halves them, then apply blocks to the tokens sorted by region."""

    def __init__(self, down: nn.Module, blocks: Iterable[RegionBlock], window: int) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)
        self.window = window
        self.regional = StageOutput()
        self.local = StageOutput()

    def forward(
        self, local: Float[Tensor, "b h w c"], regional: Float[Tensor, "b p q c"]
    ) -> tuple[Float[Tensor, "b y x d"], Float[Tensor, "b r s d"]]:
        """Return the map of local cells and that of regions."""
        local, regional = self.down(local), self.down(regional)
        height, width = local.shape[1:3]
        rows, columns = regional.shape[1:3]
        regions = Regions((height, width), (rows, columns), self.window)
        visible = visible_cells(regions, local)
        x = regions.join(local, regional)
        for block in self.blocks:
            x = block(x, regions, visible)
        local, regional = regions.split(x)
        # In this order, so that both are collected where a forward pass stops after the map.
        regional = self.regional(regional)
        return self.local(local), regional


class StageOutput(nn.Module):
    """Where hooks reach one of the two maps after a stage."""

    @layer
    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Return the map, contiguous as convolutions need it; extractors by FX look for an operation here."""
        return x.contiguous()


class RegionBlock(Block):
    """Regional self-attention, local self-attention by the same weights, and a feed-forward (section 3.2).

    Args:
        attention: acts in a region, and between the regions' tokens.
        bias: returns what is added to the scores in a region.
        positions: acts on both maps after the block; None for none.
    """

    def __init__(
        self,
        dim: int,
        attention: Attention,
        feedforward: nn.Module,
        *,
        bias: LocalBias,
        positions: nn.Module | None,
        norm: partial[nn.LayerNorm],
        drop_path: float,
    ) -> None:
        super().__init__(dim, attention, feedforward, norm=norm, drop_path=drop_path)
        self.regional_norm = norm(dim)
        self.bias = bias
        self.positions = positions

    @layer
    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "g n d"], regions: Regions, visible: Bool[Tensor, "r 1 n n"] | None = None
    ) -> Float[Tensor, "g n d"]:
        """Transform the tokens of all regions, as `Regions.join` and `visible_cells` return them."""
        regional = x[:, 0].unflatten(0, (-1, prod(regions.counts)))
        regional = regional + self.drop_path(self.scale1(self.attention(self.regional_norm(regional))))
        x = torch.cat([regional.flatten(0, 1)[:, None], x[:, 1:]], dim=1)
        inputs = BlockInputs(mask=hide_cells(self.bias()[None], visible, regional))
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        x = x + self.drop_path(self.scale2(self.feedforward(self.norm2(x))))
        if self.positions is None:
            return x
        local, regional = regions.split(x)
        return regions.join(self.positions(local), self.positions(regional))


class LocalBias(RelativeBias):
    """A relative bias between the cells of a region; nothing is added for the region's token, the first."""

    def compute(self, *window: int) -> Float[Tensor, "h n n"]:
        """Look up the offset of each pair of cells."""
        return F.pad(super().compute(*window), (1, 0, 1, 0))


@dataclass(frozen=True)
class Regions:
    """How a map of local cells is divided into regions.

    Args:
        grid: rows and columns of local cells.
        counts: rows and columns of regions.
        window: side of a region in cells; the map is padded below and on the right.
    """

    grid: tuple[int, int]
    counts: tuple[int, int]
    window: int

    @property
    def partition(self) -> Partition:
        """How the padded map is partitioned."""
        return windows((self.window, self.window))

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns of local cells once the regions are whole."""
        return self.counts[0] * self.window, self.counts[1] * self.window

    def join(
        self, local: Float[Tensor, "b h w d"], regional: Float[Tensor, "b y x d"]
    ) -> Float[Tensor, "g n d"]:
        """Return (b * y * x, 1 + window^2, d): each region's token, then its cells."""
        cells = self.partition.split(pad_map(local, self.padded))
        return torch.cat([regional.flatten(0, 2)[:, None], cells], dim=1)

    def split(self, tokens: Float[Tensor, "g n d"]) -> Maps:
        """Return the inverse of `join`."""
        local = crop_map(self.partition.merge(tokens[:, 1:], self.padded), self.grid)
        return local, tokens[:, 0].unflatten(0, (-1, *self.counts))


@fx_leaf
def visible_cells(regions: Regions, like: Tensor) -> Bool[Tensor, "r 1 n n"] | None:
    """Return which tokens attend to which in the regions of one image; None for all to all.

    As in the authors' code, cells that pad a region are hidden, except in the last region, where cells attend
    to each other that are both in real rows or both in real columns.
    """
    if regions.grid == regions.padded:
        return None
    height, width = regions.padded
    partition = regions.partition
    rows = real_cells((regions.grid[0], width), regions.padded, like)
    columns = real_cells((height, regions.grid[1]), regions.padded, like)
    rows, columns = (F.pad(partition.split(x)[..., 0], (1, 0), value=True) for x in (rows, columns))
    seen = (rows & columns)[:, None].expand(-1, rows.shape[1], -1)
    last = (rows[-1] & rows[-1, :, None]) | (columns[-1] & columns[-1, :, None])
    last = last | ~last.any(dim=-1, keepdim=True)
    return torch.cat([seen[:-1], last[None]])[:, None]


@fx_leaf
def hide_cells(
    bias: Float[Tensor, "1 h n n"], visible: Bool[Tensor, "r 1 n n"] | None, regional: Float[Tensor, "b r d"]
) -> Float[Tensor, "_ h n n"]:
    """Return the mask of the regions of all images: the bias, without the tokens that are not visible."""
    if visible is None:
        return bias
    return bias.masked_fill(~visible, -torch.inf).repeat(regional.shape[0], 1, 1, 1)
