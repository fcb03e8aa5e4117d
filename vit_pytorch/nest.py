"""Nested Hierarchical Transformer: Towards Accurate, Data-Efficient and Interpretable Visual Understanding.

Z. Zhang, H. Zhang, L. Zhao, T. Chen, S. O. Arik, T. Pfister 2021, arXiv:2105.12723.

Plain transformers on blocks of an image that do not see each other. Between two levels of the hierarchy a
convolution and a pooling of the whole map merge every four blocks into one, so that the last level has one.

Family: pyramid
Differs from the paper: GELU is exact, unless told otherwise, where the authors' program approximates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical_v01 import HierarchicalModel, Stage
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.conv import OnMap
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.linear import Linear
from vit_pytorch.layers_v01.options import check_choice, per_stage
from vit_pytorch.layers_v01.patches import PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.windows import windows

PADDINGS = ("same", "symmetric")


class BlockAttention(Attention):
    """Attention within each block of an image."""

    def forward(self, x: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n d"]:
        """Let every token attend to the tokens of its block."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class MultiQueryAttention(BlockAttention):
    """Attention within each block, with one head of keys and values for all of queries (arXiv:1911.02150).

    Args:
        dim: width of a token.
        heads: number of heads of queries.
        dim_head: width of a head.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        dropout: dropout on the output.
        attend: makes the kernel that mixes the values.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_head: int,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attend: Callable[[], nn.Module] = FusedAttention,
    ) -> None:
        super().__init__(
            dim, heads=heads, dim_head=dim_head, qkv_bias=qkv_bias, dropout=dropout, attend=attend
        )
        self.to_qkv = Linear(dim, (heads + 2) * dim_head, bias=qkv_bias)

    def project(
        self, x: Float[Tensor, "b n d"]
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """Project tokens to the queries of every head, and to the keys and values that all heads share."""
        parts = self.to_qkv(x).unflatten(-1, (-1, self.dim_head)).transpose(1, 2)
        q, k, v = parts.split((self.heads, 1, 1), dim=1)
        return q, k.expand_as(q), v.expand_as(q)


class Aggregation(nn.Sequential):
    """Merge blocks: convolution, LayerNorm and max-pooling of a map.

    Args:
        dim: width of a cell that enters.
        out_dim: width of a cell that leaves.
        padding: "same" pools windows that begin at a cell of even place, as TensorFlow and JAX do;
            "symmetric" those that have it in their middle.
        norm_eps: epsilon of the LayerNorm.
    """

    def __init__(self, dim: int, out_dim: int, *, padding: str = "same", norm_eps: float = 1e-6) -> None:
        super().__init__()
        check_choice("padding", padding, PADDINGS)
        same = padding == "same"
        self.add_module("conv", OnMap(nn.Conv2d(dim, out_dim, 3, padding=1)))
        self.add_module("norm", nn.LayerNorm(out_dim, eps=norm_eps))
        self.add_module("pool", OnMap(nn.MaxPool2d(3, 2, padding=0 if same else 1, ceil_mode=same)))


class Level(Stage):
    """A level of the hierarchy: aggregation, positions, and a transformer on each block by itself.

    Args:
        down: gives the map of this level from that of the one before.
        encoder: the transformer, whose tokens are (b, blocks, n, d).
        positions: what is added to the cells of the map.
        regions: blocks along each axis.
    """

    def __init__(
        self, down: nn.Module, encoder: Encoder, positions: LearnedPositions, *, regions: int
    ) -> None:
        super().__init__(down, encoder)
        self.positions = positions
        self.regions = regions

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b y x d"]:
        """Give the map behind the level."""
        x = self.down(x)
        grid = x.shape[1:3]
        x = x + self.positions(grid).unflatten(1, grid)
        blocks = windows([extent // self.regions for extent in grid])
        tokens = blocks.split(x).unflatten(0, (x.shape[0], -1))
        return blocks.merge(self.encoder(tokens).flatten(0, 1), grid)


class NesT(HierarchicalModel):
    """The nested hierarchical transformer.

    `dim` and `heads` are one number for each level, or that of the first level, which then doubles from
    level to level, as in the paper's models. The blocks of a level are as many for every input: a smaller
    one has smaller blocks, and its cells have the positions of the same places in the largest input.

    Args:
        image_size: the largest input, one number or (height, width) in pixels; a multiple of the patch
            times the number of blocks along an axis of the first level, `2 ** (num_hierarchies - 1)`.
        patch_size: size of a patch, one number or (height, width).
        dim: width of a token.
        heads: number of attention heads.
        num_hierarchies: number of levels.
        block_repeats: number of transformer layers of each level, or of all alike, from the bottom on.
        num_classes: number of logits; 0 gives the pooled embedding.
        channels: channels of the input.
        mlp_ratio: width inside the feed-forward, as a multiple of that of a token.
        dropout: dropout after the linear layers of the transformers, in [0, 1).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last layer, in [0, 1); rises linearly from 0.
        qkv_bias: whether queries, keys and values have biases.
        multi_query: whether the heads of a layer share their keys and values, as in the paper's models for
            images of 32 pixels.
        act: name of the activation; the authors' program has "gelu_tanh", timm, whose conversions of the
            authors' weights most people use, "gelu".
        padding: "same" pads the pooling between levels as the authors' program does, in JAX; "symmetric"
            as is the custom in PyTorch (see `Aggregation`).
        norm_eps: epsilon of the LayerNorms.

    Raises:
        ValueError: where sizes do not divide.
    """

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
        if num_hierarchies < 1:
            raise ValueError(f"a hierarchy has at least 1 level, got {num_hierarchies}")
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

        def block(level: int, layer: int) -> Block:
            width = dims[level]
            attention = (MultiQueryAttention if multi_query else BlockAttention)(
                width,
                heads=all_heads[level],
                dim_head=width_of_head(width, all_heads[level]),
                qkv_bias=qkv_bias,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(width, int(width * mlp_ratio), dropout=dropout, act=act)
            norm = partial(nn.LayerNorm, width, eps=norm_eps)
            drop = drop_path_rate(drop_path, sum(depth[:level]) + layer, sum(depth))
            tail = partial(make_tail, width, drop_path=drop)
            return Block(Residual(attention, norm(), tail()), Residual(feedforward, norm(), tail()))

        def down(level: int) -> nn.Module:
            if level == 0:
                return OnMap(nn.Conv2d(channels, dims[0], patch, patch))
            return Aggregation(dims[level - 1], dims[level], padding=padding, norm_eps=norm_eps)

        grid = PatchGrid(self.image_size, patch).shape
        self.stages = nn.ModuleList(
            Level(
                down(level),
                Encoder(partial(block, level), depth=depth[level]),
                LearnedPositions([extent // 2**level for extent in grid], dims[level]),
                regions=regions[level],
            )
            for level in levels
        )
        self.norm = nn.LayerNorm(dims[-1], eps=norm_eps)
        start = partial(nn.init.trunc_normal_, std=0.02)
        init_linears(self, start)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                start(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.reset_classifier(num_classes)
