"""Escaping the Big Data Paradigm with Compact Transformers.

A. Hassani, S. Walton, N. Shah, A. Abuduweili, J. Li, H. Shi 2021, arXiv:2104.05704.

Small convolutions with pooling cut the image into tokens, so that neighbours overlap and no size needs to
divide; a learned weighted mean of the tokens replaces the class token. Trains from scratch on small data.

Family: plain
Differs from the paper: nothing; its code's norm of the residual stream before the feed-forward is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import Attention, FusedAttention, width_of_head
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, drop_path_rate, make_tail
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import CONV, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions, SequencePositions

Positions = Literal["learnable", "sine", "none"]
MAX_POOL: dict[int, Callable[..., nn.Module]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
HIDDEN_CHANNELS = 64
SIZES: dict[int, dict[str, Any]] = {
    2: {"embedding_dim": 128, "num_layers": 2, "num_heads": 2, "mlp_ratio": 1.0},
    4: {"embedding_dim": 128, "num_layers": 4, "num_heads": 2, "mlp_ratio": 1.0},
    6: {"embedding_dim": 256, "num_layers": 6, "num_heads": 4, "mlp_ratio": 2.0},
    7: {"embedding_dim": 256, "num_layers": 7, "num_heads": 4, "mlp_ratio": 2.0},
    8: {"embedding_dim": 256, "num_layers": 8, "num_heads": 4, "mlp_ratio": 2.0},
    14: {"embedding_dim": 384, "num_layers": 14, "num_heads": 6, "mlp_ratio": 3.0},
    16: {"embedding_dim": 384, "num_layers": 16, "num_heads": 6, "mlp_ratio": 3.0},
}


@dataclass(frozen=True)
class Window:
    """What a convolution or a pooling slides over an array, as extents along each axis.

    Args:
        kernel: size of the window.
        stride: step of the window.
        padding: cells put around the array on either side.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.padding) < 0:
            raise ValueError(f"kernel and stride are at least 1 and padding 0, got {self}")

    def slide(self, size: Sequence[int]) -> tuple[int, ...]:
        """Count the window's places along each axis of an array of this size; none where it does not fit."""
        axes = zip(size, self.kernel, self.stride, self.padding, strict=True)
        return tuple(max((s + 2 * p - k) // step + 1, 0) for s, k, step, p in axes)


@dataclass(frozen=True)
class ConvGrid(PatchGrid):
    """The grid of tokens that windows, one after the other, leave of an array of at most `size`.

    Any size will do that leaves a token; `patch` is the distance of two tokens.

    Args:
        size: extent of the array along each axis.
        patch: product of the strides along each axis.
        windows: of the convolutions and poolings, in their order.
    """

    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens along each axis, at the largest input."""
        return self.fit(self.size)

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Give the grid of an input of this size.

        Raises:
            ValueError: where the input is larger than the grid, or leaves no token.
        """
        super().fit(size)
        return self._slide(size)

    def patchify(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n p"]:
        """Flatten the cells of `patch` pixels, which do not overlap; here they must divide the array."""
        return PatchGrid(self.size, self.patch).patchify(x)

    def _slide(self, size: Sequence[int]) -> tuple[int, ...]:
        for window in self.windows:
            size = window.slide(size)
        return tuple(size)

    def _check_divides(self, size: Sequence[int]) -> None:
        if not all(self._slide(size)):
            raise ValueError(f"image size {tuple(size)} leaves no token: the windows are {self.windows}")


class ConvTokenizer(nn.Module):
    """Embed an array by convolutions, each with ReLU and max-pooling (section 3.4).

    The ReLU stands behind the pooling, on fewer numbers; as both rise, the result is the same.

    Args:
        channels: channels of the input.
        dim: width of a token.
        layers: number of convolutions; those before the last have 64 channels.
        conv: window of the convolutions; its rank, 1 to 3, is that of the array.
        pool: window of the poolings.
    """

    def __init__(self, channels: int, dim: int, *, layers: int, conv: Window, pool: Window) -> None:
        super().__init__()
        rank = len(conv.kernel)
        widths = [channels, *[HIDDEN_CHANNELS] * (layers - 1), dim]
        self.convs = nn.ModuleList(
            CONV[rank](before, after, conv.kernel, conv.stride, conv.padding, bias=False)
            for before, after in pairwise(widths)
        )
        self.pool = MAX_POOL[rank](pool.kernel, pool.stride, pool.padding)
        for layer in self.convs.parameters():
            nn.init.kaiming_normal_(layer)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        for conv in self.convs:
            x = F.relu(self.pool(conv(x)))
        return x.flatten(2).transpose(1, 2)


class SequencePool(nn.Module):
    """Pool tokens by a mean whose weights are learned from the tokens (section 3.3).

    The score's bias has no influence, since softmax ignores it; published checkpoints have it.

    Args:
        dim: width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)
        self.weights = nn.Identity()

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool tokens to one vector for each sample."""
        weights = self.weights(self.score(x).softmax(dim=1).mT[:, None])
        return (weights @ x[:, None])[:, 0, 0]


class StreamNormResidual(Residual):
    """norm(x) + tail(branch(norm(x))): the norm acts on the residual stream, too."""

    def forward(self, x: Float[Tensor, "*s"], *context: Any) -> Float[Tensor, "*s"]:
        """Norm the input, then add the branch to it; the branch is handed the context, too."""
        x = self.norm(x)
        return x + self.tail(self.branch(x, *context))


class CompactTransformer(IsotropicModel):
    """A compact transformer on arrays of any rank.

    Args:
        size: the largest input, one extent for each axis.
        dim: width of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: width inside the feed-forward, as a multiple of `dim`.
        num_classes: number of logits; 0 gives the pooled embedding.
        channels: channels of the input.
        layers: number of convolutions.
        conv: window of the convolutions.
        pool: window of the poolings behind them.
        positions: "learnable", "sine" or "none".
        dropout: dropout on the embedded tokens and after the linear layers of the encoder, in [0, 1).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        num_classes: int,
        channels: int,
        layers: int,
        conv: Window,
        pool: Window,
        positions: Positions,
        dropout: float,
        attn_dropout: float,
        drop_path: float,
    ) -> None:
        if layers < 1:
            raise ValueError(f"there is at least 1 convolution, got {layers}")
        check_choice("positional_embedding", positions, ("learnable", "sine", "none"))
        strides = tuple((c * p) ** layers for c, p in zip(conv.stride, pool.stride, strict=True))
        grid = ConvGrid(size, strides, (conv, pool) * layers)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="seq")
        norm = partial(nn.LayerNorm, dim, eps=1e-5)

        self.patch_embed = ConvTokenizer(channels, dim, layers=layers, conv=conv, pool=pool)
        if positions == "learnable":
            self.positions = LearnedPositions(grid.shape, dim)
            nn.init.trunc_normal_(self.positions.table, std=0.2)
        elif positions == "sine":
            self.positions = SequencePositions(grid.shape, dim)
        self.dropout = nn.Dropout(dropout)

        def block(layer: int) -> Block:
            attention = Attention(
                dim,
                heads=heads,
                dim_head=width_of_head(dim, heads),
                qkv_bias=False,
                dropout=dropout,
                attend=partial(FusedAttention, attn_dropout),
            )
            feedforward = FeedForward(dim, int(dim * mlp_ratio), dropout=dropout)
            tail = partial(make_tail, dim, drop_path=drop_path_rate(drop_path, layer, depth))
            return Block(Residual(attention, norm(), tail()), StreamNormResidual(feedforward, norm(), tail()))

        self.encoder = Encoder(block, depth=depth)
        self.norm = norm()
        self.sequence_pool = SequencePool(dim)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def pool_tokens(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Give one vector for each sample, by sequence pooling."""
        return self.sequence_pool(features)


class CCT(CompactTransformer):
    """The Compact Convolutional Transformer.

    An input may be smaller than `img_size`: tokens have the positions of the same places in the full grid.

    Args:
        img_size: the largest input, one number or (height, width) in pixels.
        embedding_dim: width of a token, a multiple of `num_heads`.
        n_conv_layers: number of convolutions in the tokenizer.
        kernel_size: size of the convolutions' window.
        stride: step of the convolutions.
        padding: zeros around what is convolved.
        pooling_kernel_size: size of the max-poolings' window.
        pooling_stride: step of the poolings.
        pooling_padding: padding around what is pooled, at most half of its window.
        num_layers: number of blocks.
        num_heads: number of attention heads.
        mlp_ratio: width inside the feed-forward, as a multiple of `embedding_dim`.
        num_classes: number of logits; 0 gives the pooled embedding.
        positional_embedding: "learnable", "sine" (fixed, along the sequence) or "none".
        channels: channels of the input.
        dropout: dropout on the embedded tokens and after the linear layers of the encoder, in [0, 1).
        attn_dropout: dropout on the attention weights, in [0, 1).
        drop_path: probability to drop a residual branch at the last block, in [0, 1); rises linearly from 0.

    Raises:
        ValueError: where heads do not divide the width, or an image leaves no token.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        embedding_dim: int = 768,
        n_conv_layers: int = 1,
        kernel_size: int = 7,
        stride: int = 2,
        padding: int = 3,
        pooling_kernel_size: int = 3,
        pooling_stride: int = 2,
        pooling_padding: int = 1,
        num_layers: int = 14,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        positional_embedding: Positions = "learnable",
        channels: int = 3,
        dropout: float = 0.0,
        attn_dropout: float = 0.1,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__(
            pair(img_size),
            dim=embedding_dim,
            depth=num_layers,
            heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            channels=channels,
            layers=n_conv_layers,
            conv=Window(pair(kernel_size), pair(stride), pair(padding)),
            pool=Window(pair(pooling_kernel_size), pair(pooling_stride), pair(pooling_padding)),
            positions=positional_embedding,
            dropout=dropout,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
        )


Model = TypeVar("Model", bound=CompactTransformer)


def build_cct(layers: int, kernel_size: int = 3, *, kind: Callable[..., Model], **arguments: Any) -> Model:
    """Build one of the paper's sizes.

    Args:
        layers: the size, by its number of blocks: 2, 4, 6, 7, 8, 14 or 16.
        kernel_size: size of the convolutions' window; stride and padding follow from it unless told.
        kind: the class.
        arguments: those of the class.
    """
    half = kernel_size // 2
    window = {"kernel_size": kernel_size, "stride": max(half - 1, 1), "padding": max(half, 1)}
    return kind(**{**SIZES[layers], **window, **arguments})


cct_2 = partial(build_cct, 2, kind=CCT)
cct_4 = partial(build_cct, 4, kind=CCT)
cct_6 = partial(build_cct, 6, kind=CCT)
cct_7 = partial(build_cct, 7, kind=CCT)
cct_8 = partial(build_cct, 8, kind=CCT)
cct_14 = partial(build_cct, 14, kind=CCT)
cct_16 = partial(build_cct, 16, kind=CCT)
