"""Escaping the Big Data Paradigm with Compact Transformers, for videos and volumes.

A. Hassani, S. Walton, N. Shah, A. Abuduweili, J. Li, H. Shi 2021, arXiv:2104.05704.

The Compact Convolutional Transformer with convolutions and poolings of three axes.

Family: plain
Differs from the paper: convolutions and poolings have three axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from vit_pytorch.cct import CompactTransformer, Positions, Window, build_cct
from vit_pytorch.layers_v01.patches import pair


class CCT3D(CompactTransformer):
    """The Compact Convolutional Transformer on videos or volumes (b c t h w).

    An input may have fewer frames than `num_frames` and be smaller than `img_size`: tokens have the positions
    of the same places in the full grid. Maps of `forward_intermediates` have the axes (b d t h w).

    Args:
        img_size: the largest frame, one number or (height, width) in pixels.
        num_frames: number of frames (slices of a volume) at most.
        embedding_dim: width of a token, a multiple of `num_heads`.
        n_conv_layers: number of convolutions in the tokenizer.
        frame_stride: step of the convolutions in frames.
        frame_kernel_size: frames in the convolutions' window.
        frame_padding: frames of zeros before and behind what is convolved; None for half of the window.
        frame_pooling_kernel_size: frames in the max-poolings' window.
        frame_pooling_stride: step of the poolings in frames.
        frame_pooling_padding: frames of padding before and behind what is pooled; None for half of the
            window.
        kernel_size: size of the convolutions' window in a frame.
        stride: step of the convolutions in a frame.
        padding: zeros around what is convolved.
        pooling_kernel_size: size of the max-poolings' window in a frame.
        pooling_stride: step of the poolings in a frame.
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
        ValueError: where heads do not divide the width, or a video leaves no token.
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
        super().__init__(
            (num_frames, *pair(img_size)),
            dim=embedding_dim,
            depth=num_layers,
            heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=num_classes,
            channels=channels,
            layers=n_conv_layers,
            conv=Window(
                (frame_kernel_size, *pair(kernel_size)),
                (frame_stride, *pair(stride)),
                (frame_padding, *pair(padding)),
            ),
            pool=Window(
                (frame_pooling_kernel_size, *pair(pooling_kernel_size)),
                (frame_pooling_stride, *pair(pooling_stride)),
                (frame_pooling_padding, *pair(pooling_padding)),
            ),
            positions=positional_embedding,
            dropout=dropout,
            attn_dropout=attn_dropout,
            drop_path=drop_path,
        )


cct_2 = partial(build_cct, 2, kind=CCT3D)
cct_4 = partial(build_cct, 4, kind=CCT3D)
cct_6 = partial(build_cct, 6, kind=CCT3D)
cct_7 = partial(build_cct, 7, kind=CCT3D)
cct_8 = partial(build_cct, 8, kind=CCT3D)
cct_14 = partial(build_cct, 14, kind=CCT3D)
cct_16 = partial(build_cct, 16, kind=CCT3D)
CCT = CCT3D
