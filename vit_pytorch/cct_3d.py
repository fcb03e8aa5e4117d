"""Escaping the Big Data Paradigm with Compact Transformers, for videos and volumes.

A. Hassani, S. Walton, N. Shah, A. Abuduweili, J. Li, H. Shi 2021, arXiv:2104.05704.

The Compact Convolutional Transformer with convolutions and poolings of three axes.

Family: plain
Differs from the paper: convolutions and poolings have three axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.cct import (
    ConvTokenizer,
    Positions,
    SequencePool,
    StreamNormBlock,
    Window,
    build_cct,
    compact_positions,
    conv_grid,
)
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import head_dim
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.patches import pair


class CCT3D(IsotropicModel):
    """The Compact Convolutional Transformer on videos or volumes (b c t h w).

    An input may have fewer frames than `num_frames` and be smaller than `img_size`: tokens have the positions
    of the same places in the full grid. Maps of `forward_intermediates` have the axes (b d t h w).

    Args:
        img_size: the largest frame, one number or (height, width) in pixels.
        num_frames: number of frames (slices of a volume) at most.
        embedding_dim: token dimension, a multiple of `num_heads`.
        n_conv_layers: number of convolutions in the tokenizer.
        frame_stride: step of the convolutions in frames.
        frame_kernel_size: frames in the convolutions' window.
        frame_padding: frames of zeros before and after what is convolved; default half of the window.
        frame_pooling_kernel_size: frames in the max-poolings' window.
        frame_pooling_stride: step of the poolings in frames.
        frame_pooling_padding: frames of padding before and after what is pooled; default half of the
            window.
        kernel_size: size of the convolutions' window in a frame.
        stride: step of the convolutions in a frame.
        padding: zeros around what is convolved.
        pooling_kernel_size: size of the max-poolings' window in a frame.
        pooling_stride: step of the poolings in a frame.
        pooling_padding: padding around what is pooled, at most half of its window.
        mlp_ratio: hidden dimension of the feed-forward, as a multiple of `embedding_dim`.
        positional_embedding: "learnable", "sine" (fixed, along the sequence) or "none".
        dropout: dropout on the embedded tokens and after the linear layers of the blocks, in [0, 1).

    Raises:
        ValueError: if heads do not divide the dimension, or a video leaves no token.
    """

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 224,
        num_frames: int = 8,
        embedding_dim: int = 768,
        n_conv_layers: int = 1,
        frame_stride: int = 1,
        frame_kernel_size: int = 3,
        frame_padding: int | None = None,
        frame_pooling_kernel_size: int = 1,
        frame_pooling_stride: int = 1,
        frame_pooling_padding: int | None = None,
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
        if frame_padding is None:
            frame_padding = frame_kernel_size // 2
        if frame_pooling_padding is None:
            frame_pooling_padding = frame_pooling_kernel_size // 2
        conv = Window(
            (frame_kernel_size, *pair(kernel_size)),
            (frame_stride, *pair(stride)),
            (frame_padding, *pair(padding)),
        )
        pool = Window(
            (frame_pooling_kernel_size, *pair(pooling_kernel_size)),
            (frame_pooling_stride, *pair(pooling_stride)),
            (frame_pooling_padding, *pair(pooling_padding)),
        )
        grid = conv_grid((num_frames, *pair(img_size)), n_conv_layers, conv, pool)
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

    def forward_features(self, images: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def pool_features(self, features: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """Return one vector per video, by sequence pooling (section 3.3)."""
        return self.sequence_pool(features)


cct_2 = partial(build_cct, 2, kind=CCT3D)
cct_4 = partial(build_cct, 4, kind=CCT3D)
cct_6 = partial(build_cct, 6, kind=CCT3D)
cct_7 = partial(build_cct, 7, kind=CCT3D)
cct_8 = partial(build_cct, 8, kind=CCT3D)
cct_14 = partial(build_cct, 14, kind=CCT3D)
cct_16 = partial(build_cct, 16, kind=CCT3D)
CCT = CCT3D
