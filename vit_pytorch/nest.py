"""Nested Hierarchical Transformer: Towards Accurate, Data-Efficient and Interpretable Visual Understanding.

Z. Zhang, H. Zhang, L. Zhao, T. Chen, S. O. Arik, T. Pfister 2021, arXiv:2105.12723.

Plain transformers on blocks of an image that do not see each other. Between two levels of the hierarchy a
convolution and a pooling of the whole map merge every four blocks into one, so that the last level has one.

Family: pyramid
Differs from the paper: GELU is exact by default, where the authors' program approximates it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    BlockInputs,
    FusedAttention,
    Queries,
    head_dim,
    merge_heads,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, fx_leaf, layer
from vit_pytorch.layers.conv import OnMap
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice, per_stage
from vit_pytorch.layers.patches import PatchGrid, pair
from vit_pytorch.layers.positions import LearnedPositions
from vit_pytorch.layers.windows import windows

PADDINGS = ("same", "symmetric")


class NesT(HierarchicalModel):
    """The nested hierarchical transformer.

    `dim` and `heads` are one number for each level, or that of the first level, which then doubles from
    level to level, as in the paper's models. The blocks of a level are as many for every input: a smaller
    one has smaller blocks, and its cells have the positions of the same places in the largest input.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; a multiple of the patch
            times the number of blocks along an axis of the first level, `2 ** (num_hierarchies - 1)`.
        num_hierarchies: number of levels.
        block_repeats: number of transformer layers of each level, or of all alike, from the bottom on.
        mlp_ratio: hidden dimension of the feed-forward, as a multiple of the token dimension.
        multi_query: the heads of a layer share their keys and values, as in the paper's models for images of
            32 pixels.
        act: name of the activation; the authors' program has "gelu_tanh", timm, whose conversions of the
            authors' weights most people use, "gelu".
        padding: "same" pads the pooling between levels as the authors' program does, in JAX; "symmetric"
            as is the custom in PyTorch (see `Aggregation`).
    """

    down_in_first_block = True

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        dim: int | Sequence[int],
        heads: int | Sequence[int],
        num_hierarchies: int,
        block_repeats: int | Sequence[int],
        num_classes: int,
        channels: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        multi_query: bool = False,
        act: str = "gelu",
        padding: str = "same",
        norm_eps: float = 1e-6,
    ) -> None:
        levels = range(num_hierarchies)
        dims, all_heads = (
            per_stage(name, value, num_hierarchies) for name, value in (("dim", dim), ("heads", heads))
        )
        depth = per_stage("block_repeats", block_repeats, num_hierarchies, growth=1)
        patch = pair(patch_size)
        regions = [2 ** (num_hierarchies - 1 - level) for level in levels]
        super().__init__(
            image_size=pair(image_size),
            num_classes=num_classes,
            dims=dims,
            strides=[max(patch) * 2**level for level in levels],
            channels=channels,
            size_multiple=(patch[0] * regions[0], patch[1] * regions[0]),
            any_size=False,
        )

        def block(level: int, drop: float) -> Block:
            width, heads = dims[level], all_heads[level]
            attention = BlockAttention(
                width,
                heads=heads,
                kv_heads=1 if multi_query else heads,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attn_dropout=attn_dropout,
            )
            feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act)
            norm = partial(nn.LayerNorm, eps=norm_eps)
            return Block(width, attention, feedforward, norm=norm, drop_path=drop)

        def down(level: int) -> nn.Module:
            if level == 0:
                return OnMap(nn.Conv2d(channels, dims[0], patch, patch))
            return Aggregation(dims[level - 1], dims[level], padding=padding, norm_eps=norm_eps)

        grid = PatchGrid(self.image_size, patch).shape
        for level, rates in enumerate(drop_path_rates(drop_path, depth)):
            blocks = [block(level, drop) for drop in rates]
            positions = LearnedPositions([extent // 2**level for extent in grid], dims[level])
            self.stages.append(Level(down(level), blocks, positions, regions=regions[level]))
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Pixels of unit variance become tokens of unit variance, which positions are added to.
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Return the map of the last level after the final norm."""
        x = self.embed(images)
        for level in self.stages:
            x = level(x)
        return self.norm(x).permute(0, 3, 1, 2)


class Level(nn.Module):
    """A level of the hierarchy: aggregation, positions, and a transformer on each block of the map.

    Args:
        down: returns the map of this level from that of the one before.
        blocks: the layers of the transformer, whose tokens are (b, blocks, n, d).
        positions: added to the cells of the map.
        regions: blocks along each axis.
    """

    def __init__(
        self, down: nn.Module, blocks: Iterable[nn.Module], positions: LearnedPositions, *, regions: int
    ) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)
        self.positions = positions
        self.regions = regions

    @layer
    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Return the map of this level."""
        x = self.down(x)
        height, width = x.shape[1:3]
        # The grid is a list: tuples are compared with the table's, which tracing cannot follow.
        x = self.positions(x.flatten(1, 2), prefix=0, grid=[height, width]).unflatten(1, (height, width))
        tokens = to_blocks(x, self.regions)
        for block in self.blocks:
            tokens = block(tokens)
        return from_blocks(tokens, (height, width), self.regions)


class BlockAttention(nn.Module):
    """Multi-head self-attention within each block of an image.

    Args:
        kv_heads: number of heads of keys and values: as many, or one that all heads of queries share
            (arXiv:1911.02150).
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        kv_heads: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        self.dim_head = head_dim(dim, heads)
        self.to_qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.dim_head, bias=qkv_bias)
        self.kernel = FusedAttention(attn_dropout)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Float[Tensor, "_ t n d"]) -> tuple[Queries, Queries, Queries]:
        """Project tokens to queries, keys and values, split into heads; blocks join the batch."""
        parts = self.to_qkv(x).flatten(0, 1).unflatten(-1, (-1, self.dim_head)).transpose(1, 2)
        q, k, v = parts.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        return q, k.expand_as(q), v.expand_as(q)

    def forward(
        self, x: Float[Tensor, "b t n d"], inputs: BlockInputs = NO_INPUTS
    ) -> Float[Tensor, "b t n d"]:
        """Attend from each token to the tokens of its block."""
        mixed = merge_heads(self.kernel(*self.project(x))).view_as(x)
        return self.dropout(self.to_out(mixed))


class Aggregation(nn.Sequential):
    """Merge blocks: convolution, LayerNorm and max-pooling of a map.

    Args:
        padding: "same" pools windows that begin at a cell of even place, as TensorFlow and JAX do;
            "symmetric" those that have it in their middle.
    """

    def __init__(self, dim: int, out_dim: int, *, padding: str = "same", norm_eps: float = 1e-6) -> None:
        super().__init__()
        check_choice("padding", padding, PADDINGS)
        same = padding == "same"
        self.add_module("conv", OnMap(nn.Conv2d(dim, out_dim, 3, padding=1)))
        self.add_module("norm", nn.LayerNorm(out_dim, eps=norm_eps))
        self.add_module("pool", OnMap(nn.MaxPool2d(3, 2, padding=0 if same else 1, ceil_mode=same)))


@fx_leaf
def to_blocks(x: Float[Tensor, "b h w d"], regions: int) -> Float[Tensor, "b t n d"]:
    """Cut a map into so many blocks along each axis, in row-major order."""
    blocks = windows([extent // regions for extent in x.shape[1:3]])
    return blocks.split(x).unflatten(0, (x.shape[0], -1))


@fx_leaf
def from_blocks(
    tokens: Float[Tensor, "b t n d"], grid: Sequence[int], regions: int
) -> Float[Tensor, "b h w d"]:
    """Put the blocks back in their places on a map; the inverse of `to_blocks`."""
    return windows([extent // regions for extent in grid]).merge(tokens.flatten(0, 1), grid)
