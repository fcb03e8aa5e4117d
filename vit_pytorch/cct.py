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

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, head_dim, jit_is_tracing
from vit_pytorch.layers.blocks import Block, layer, plain_blocks, static_size
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import CONV, PatchGrid, pair
from vit_pytorch.layers.positions import LearnedPositions, SinCosPositions

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


class CCT(IsotropicModel):
    """The Compact Convolutional Transformer.

    An input may be smaller than `img_size`: tokens have the positions of the same places in the full grid.

    Args:
        img_size: the largest input, one number or (height, width) in pixels.
        embedding_dim: token dimension, a multiple of `num_heads`.
        n_conv_layers: number of convolutions in the tokenizer.
        kernel_size: size of the convolutions' window.
        stride: step of the convolutions.
        padding: zeros around what is convolved.
        pooling_kernel_size: size of the max-poolings' window.
        pooling_stride: step of the poolings.
        pooling_padding: padding around what is pooled, at most half of its window.
        mlp_ratio: hidden dimension of the feed-forward, as a multiple of `embedding_dim`.
        positional_embedding: "learnable", "sine" (fixed, along the sequence) or "none".
        dropout: dropout on the embedded tokens and after the linear layers of the blocks, in [0, 1).

    Raises:
        ValueError: if heads do not divide the dimension, or an image leaves no token.
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
        conv = Window(pair(kernel_size), pair(stride), pair(padding))
        pool = Window(pair(pooling_kernel_size), pair(pooling_stride), pair(pooling_padding))
        grid = conv_grid(pair(img_size), n_conv_layers, conv, pool)
        super().__init__(grid=grid, num_classes=num_classes, dim=embedding_dim, channels=channels, pool="seq")
        self.patch_embed = ConvTokenizer(channels, embedding_dim, layers=n_conv_layers, conv=conv, pool=pool)
        self.positions = compact_positions(positional_embedding, grid.shape, embedding_dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = plain_blocks(
            embedding_dim,
            depth=num_layers,
            heads=num_heads,
            dim_head=head_dim(embedding_dim, num_heads),
            mlp_dim=int(embedding_dim * mlp_ratio),
            dropout=dropout,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
            qkv_bias=False,
            block=StreamNormBlock,
        )
        self.norm = nn.LayerNorm(embedding_dim)
        self.sequence_pool = SequencePool(embedding_dim)
        init_linears(self, partial(nn.init.trunc_normal_, std=0.02))
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Return one vector per image, by sequence pooling (section 3.3)."""
        return self.sequence_pool(features)


@dataclass(frozen=True)
class Window:
    """The window of a convolution or a pooling, by axis.

    Args:
        kernel: size of the window.
        stride: step of the window.
        padding: cells added on either side of the array.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.kernel) < 1 or min(self.stride) < 1 or min(self.padding) < 0:
            raise ValueError(f"kernel and stride must be at least 1 and padding 0, got {self}")

    def slide(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the number of positions along each axis of an array; below 1 if the window does not fit."""
        axes = zip(size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((s + 2 * p - k) // step + 1 for s, k, step, p in axes)


@dataclass(frozen=True)
class ConvGrid(PatchGrid):
    """The grid of tokens that windows, one after the other, leave of an array of at most `size`.

    Any size is allowed that leaves a token; `patch` is the distance of two tokens.

    Args:
        size: size of the array along each axis.
        patch: product of the strides along each axis.
        windows: those of the convolutions and poolings, in their order.
    """

    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens along each axis, of the largest input."""
        return self._slide(self.size)

    def fit(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the grid of an input of this size; see `PatchGrid.fit`.

        Raises:
            ValueError: if the input is empty, larger than the grid, or leaves no token.
        """
        if isinstance(size, Proxy):
            return self.shape
        if jit_is_tracing():
            size = static_size(size)
        elif not torch.compiler.is_compiling():
            if min(size) < 1 or any(s > largest for s, largest in zip(size, self.size, strict=True)):
                raise ValueError(f"image size must be at least 1 and at most {self.size}, got {tuple(size)}")
            left: Sequence[int] = size
            for window in self.windows:
                left = window.slide(left)
                if min(left) < 1:
                    raise ValueError(
                        f"image size {tuple(size)} leaves no token: the windows are {self.windows}"
                    )
        return self._slide(size)

    def patchify(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n p"]:
        """Flatten the cells of `patch` pixels, which do not overlap; here they must divide the array."""
        return PatchGrid(self.size, self.patch).patchify(x)

    def _slide(self, size: Sequence[int]) -> tuple[int, ...]:
        for window in self.windows:
            size = window.slide(size)
        return tuple(size)


class ConvTokenizer(nn.Module):
    """Embed an array by convolutions, each with ReLU and max-pooling (section 3.4).

    The ReLU comes after the pooling, on fewer numbers; both are monotonic, so the result is the same.

    Args:
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
        if any(2 * padding > kernel for padding, kernel in zip(pool.padding, pool.kernel, strict=True)):
            raise ValueError(f"pooling_padding must be at most half of pooling_kernel_size, got {pool}")
        self.pool = MAX_POOL[rank](pool.kernel, pool.stride, pool.padding)
        for weight in self.convs.parameters():
            nn.init.kaiming_normal_(weight)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        for conv in self.convs:
            x = F.relu(self.pool(conv(x)))
        return x.flatten(2).transpose(1, 2)


class SequencePool(nn.Module):
    """Pool tokens by a mean whose weights are learned from the tokens (section 3.3).

    The score's bias has no influence, since softmax ignores it; published checkpoints have it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)
        self.weights = nn.Identity()

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Pool tokens to one vector per sample."""
        weights = self.weights(self.score(x).softmax(dim=1).mT[:, None])
        return (weights @ x[:, None])[:, 0, 0]


class StreamNormBlock(Block):
    """A block whose second norm acts on the residual stream, too."""

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Apply both residual branches."""
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), inputs)))
        x = self.norm2(x)
        return x + self.drop_path(self.scale2(self.feedforward(x)))


def compact_positions(
    kind: Positions, grid: Sequence[int], dim: int
) -> LearnedPositions | SinCosPositions | None:
    """Build the positions of a compact transformer; see `CCT` for the kinds."""
    check_choice("positional_embedding", kind, ("learnable", "sine", "none"))
    if kind == "learnable":
        return LearnedPositions(grid, dim)
    return SinCosPositions(grid, dim, sequence=True) if kind == "sine" else None


def conv_grid(size: tuple[int, ...], layers: int, conv: Window, pool: Window) -> ConvGrid:
    """Return the grid of tokens that a tokenizer leaves of an array of at most `size`.

    Raises:
        ValueError: if no token is left.
    """
    strides = tuple((c * p) ** layers for c, p in zip(conv.stride, pool.stride, strict=True))
    return ConvGrid(size, strides, (conv, pool) * layers)


Model = TypeVar("Model", bound=IsotropicModel)


def build_cct(layers: int, kernel_size: int = 3, *, kind: Callable[..., Model], **arguments: Any) -> Model:
    """Build one of the paper's sizes.

    Args:
        layers: the size, by its number of blocks: 2, 4, 6, 7, 8, 14 or 16.
        kernel_size: size of the convolutions' window, which also sets the default stride and padding.
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
