"""MViTv2: Improved Multiscale Vision Transformers for Classification and Detection.

Y. Li, C.-Y. Wu, H. Fan, K. Mangalam, B. Xiong, J. Malik, C. Feichtenhofer 2021, arXiv:2112.01526.

A pyramid that attention itself builds: queries, keys and values are pooled by strided convolutions, of
queries once in each stage, which halves the map, of keys and values in every block. The pooled queries are
added to what attention returns, and the products of queries with embeddings of the offsets along each axis to
the scores.

Family: pyramid
Differs from the paper: images alone, not videos; as in the authors' code, the shortcut of a block that widens
its channels starts after the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.hierarchical import HierarchicalModel
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    Attention,
    BlockInputs,
    FusedAttention,
    heads_per_stage,
)
from vit_pytorch.layers.blocks import Block, FeedForward, drop_path_rates, fx_leaf, layer
from vit_pytorch.layers.conv import OnMap
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice, per_stage
from vit_pytorch.layers.patches import PrefixTokens, pair
from vit_pytorch.layers.positions import DecomposedPositions

# Pixels from one cell of the first stage to the next, and the side of the kernel that embeds them.
STRIDE, KERNEL = 4, 7


class MViTv2(HierarchicalModel):
    """The improved multiscale vision transformer.

    Args:
        dim: channels of the first stage, which double from stage to stage, or of each.
        depth: number of blocks of each stage.
        heads: heads of the first stage, which double from stage to stage, or of each.
        image_size: the customary input, one number or (height, width) in pixels; any other is accepted, over
            which embeddings of offsets are stretched.
        kv_stride: keys and values of the first stage are pooled by this stride, those of each later stage by
            half of the one before, down to 1.
        widen: what widens the channels: "attention" of the first block of a stage, or the "feedforward" of
            the last block of the stage before.
        class_token: a class token goes before the map through all stages, and is classified.
        mlp_ratio: hidden dimension of the feed-forward by channels.

    Raises:
        ValueError: if the numbers of stages differ, or heads do not share the channels.
    """

    stage_is_layer = True
    undecayed = r"\.(rows|columns|class_token)$"

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int | Sequence[int] = 96,
        depth: Sequence[int] = (1, 2, 5, 2),
        heads: int | Sequence[int] = 1,
        image_size: int | Sequence[int] = 224,
        channels: int = 3,
        kv_stride: int = 4,
        widen: Literal["attention", "feedforward"] = "attention",
        class_token: bool = False,
        mlp_ratio: int | float = 4,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        check_choice("widen", widen, ("attention", "feedforward"))
        count, size = len(depth), pair(image_size)
        dims = per_stage("dim", dim, count)
        all_heads = heads_per_stage(dims, per_stage("heads", heads, count))
        super().__init__(
            image_size=size,
            num_classes=num_classes,
            dims=dims if widen == "attention" else [*dims[1:], dims[-1]],
            strides=[STRIDE * 2**stage for stage in range(count)],
            channels=channels,
        )
        self.num_prefix_tokens = int(class_token)
        self.pool = "cls" if class_token else "mean"
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.stem = TokenStem(channels, dims[0], class_token=class_token)
        grid = pooled_grid(size, STRIDE)
        width = dims[0]
        for stage, rates in enumerate(drop_path_rates(drop_path, depth)):
            inner = dims[stage]
            blocks = []
            for index, rate in enumerate(rates):
                stride = 2 if stage and not index else 1
                out = self.dims[stage] if index == len(rates) - 1 else inner
                attention = Attention(
                    width,
                    heads=all_heads[stage],
                    dim_head=inner // all_heads[stage],
                    out_dim=inner,
                    qkv_bias=qkv_bias,
                    dropout=dropout,
                    kernel=partial(FusedAttention, attn_dropout),
                )
                strides = (stride, max(kv_stride >> stage, 1))
                pooling = PoolingAttention(attention, grid, strides, norm)
                feedforward = FeedForward(inner, int(inner * mlp_ratio), dropout=dropout, out_dim=out)
                widths = (width, inner, out)
                blocks.append(PoolingBlock(widths, pooling, feedforward, norm=norm, drop_path=rate))
                grid, width = pooled_grid(grid, stride), out
            self.stages.append(TokenStage(blocks))
        self.norm = norm(width)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Return the last map after the final norm; with a class token, that and all cells in a row."""
        tokens, size = self.embed(images), images.shape[2:]
        for stage, stride in zip(self.stages, (STRIDE, *self.strides), strict=False):
            # The grid that enters a stage is that of the one before.
            tokens = stage(tokens, BlockInputs(pooled_grid(size, stride), self.num_prefix_tokens))
        tokens = self.norm(tokens)
        if self.num_prefix_tokens:
            return tokens
        return tokens.transpose(1, 2).unflatten(2, pooled_grid(size, self.strides[-1]))

    def split_prefix(
        self, output: Float[Tensor, "b n d"], stage: int, size: Sequence[int]
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b k d"]]:
        """Return the map in the output of a stage, and the class token, if there is one."""
        prefix = self.num_prefix_tokens
        return output[:, prefix:].unflatten(1, pooled_grid(size, self.strides[stage])), output[:, :prefix]


@fx_leaf
def pooled_grid(grid: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return the rows and columns that pooling by a stride leaves of a grid."""
    return tuple(-(-extent // stride) for extent in grid)


class TokenStem(nn.Module):
    """A convolution over overlapping patches, and the class token before their sequence, if there is one."""

    def __init__(self, channels: int, dim: int, *, class_token: bool) -> None:
        super().__init__()
        self.embed = OnMap(nn.Conv2d(channels, dim, KERNEL, STRIDE, KERNEL // 2))
        # As small as what the linear layers, which start at 0.02, add to it.
        self.prefix = PrefixTokens(dim, class_token=class_token, std=0.02)

    def forward(self, images: Float[Tensor, "b h w c"]) -> Float[Tensor, "b n d"]:
        """Return the tokens of the first stage."""
        return self.prefix(self.embed(images).flatten(1, 2))


class TokenStage(nn.Module):
    """The blocks of a stage, the first of which may pool the map."""

    def __init__(self, blocks: Iterable[PoolingBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b m e"]:
        """Return the tokens of this stage.

        Args:
            inputs: the grid of the stage before, and the number of prefix tokens.
        """
        for block in self.blocks:
            # before the block, since tools take what is computed last for the output of a stage
            pooled = block.pooled_inputs(inputs)  # type: ignore[operator]
            x, inputs = block(x, inputs), pooled
        return x


class PoolingBlock(Block):
    """A block whose attention may pool the map, and one of whose branches may widen the channels (figure 2).

    Args:
        widths: channels of the input, of what attention returns, and of the output.
        attention: returns the tokens of the pooled map; the maximum of 3 x 3 cells pools the shortcut alike.
        norm: builds a norm.
        drop_path: probability of dropping a branch.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        attention: PoolingAttention,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        drop_path: float,
    ) -> None:
        dim, inner, out = widths
        super().__init__(inner, attention, feedforward, norm=norm, drop_path=drop_path)
        self.norm1 = norm(dim)
        self.widen1 = nn.Linear(dim, inner) if dim != inner else None
        self.widen2 = nn.Linear(inner, out) if inner != out else None
        self.stride = attention.strides[0]
        self.pool = OnMap(nn.MaxPool2d(3, self.stride, 1)) if self.stride > 1 else None

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b m e"]:
        """Transform the tokens of a grid."""
        normed = self.norm1(x)
        x = self.shortcut(x if self.widen1 is None else self.widen1(normed), inputs)
        x = x + self.drop_path(self.attention(normed, inputs))
        normed = self.norm2(x)
        x = x if self.widen2 is None else self.widen2(normed)
        return x + self.drop_path(self.feedforward(normed))

    def shortcut(self, x: Float[Tensor, "b n d"], inputs: BlockInputs) -> Float[Tensor, "b m d"]:
        """Pool the cells of a grid; a class token stays as it is."""
        if self.pool is None:
            return x
        prefix = inputs.num_prefix_tokens
        cells = self.pool(x[:, prefix:].unflatten(1, inputs.grid)).flatten(1, 2)
        return torch.cat([x[:, :prefix], cells], dim=1) if prefix else cells

    def pooled_inputs(self, inputs: BlockInputs) -> BlockInputs:
        """Return the inputs of the next block."""
        assert inputs.grid is not None
        return BlockInputs(pooled_grid(inputs.grid, self.stride), inputs.num_prefix_tokens)


class PoolingAttention(nn.Module):
    """Attention among pooled queries, keys and values, with a residual of the queries (section 4.1).

    Args:
        attention: projects, attends and merges.
        grid: rows and columns of the customary map.
        strides: those of the poolings of queries, and of keys and values.
        norm: builds the norms of pooled queries, keys and values.
    """

    def __init__(
        self,
        attention: Attention,
        grid: Sequence[int],
        strides: tuple[int, int],
        norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.attention = attention
        self.strides = strides
        of_queries, of_keys = strides
        self.pool_q = HeadPool(attention.dim_head, of_queries, norm)
        self.pool_k = HeadPool(attention.dim_head, of_keys, norm)
        self.pool_v = HeadPool(attention.dim_head, of_keys, norm)
        window = tuple(map(max, *(pooled_grid(grid, stride) for stride in strides)))
        self.positions = DecomposedPositions(window, attention.dim_head)

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b m e"]:
        """Attend from each cell of the pooled map, and from the class token, if there is one."""
        q, k, v = self.attention.project(x)
        q, k, v = self.pool_q(q, inputs), self.pool_k(k, inputs), self.pool_v(v, inputs)
        assert inputs.grid is not None
        grid, key_grid = (pooled_grid(inputs.grid, stride) for stride in self.strides)
        q, k, products = self.positions(q, k, BlockInputs(grid, inputs.num_prefix_tokens), key_grid)
        return self.attention.merge(self.attention.kernel(q, k, v, products) + q)


class HeadPool(nn.Module):
    """Pool the cells of every head by one depth-wise convolution, then norm; a class token is normed only.

    Args:
        stride: of the convolution.
        norm: builds the norm.
    """

    def __init__(self, dim_head: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv = OnMap(nn.Conv2d(dim_head, dim_head, 3, stride, 1, groups=dim_head, bias=False))
        self.norm = norm(dim_head)

    def forward(self, x: Float[Tensor, "b h n e"], inputs: BlockInputs) -> Float[Tensor, "b h m e"]:
        """Pool the cells of a grid."""
        prefix = inputs.num_prefix_tokens
        cells = x[:, :, prefix:].flatten(0, 1).unflatten(1, inputs.grid)
        pooled = self.conv(cells).flatten(1, 2).unflatten(0, x.shape[:2])
        return self.norm(torch.cat([x[:, :, :prefix], pooled], dim=2) if prefix else pooled)
