"""Better plain ViT baselines for ImageNet-1k, for videos and volumes.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

The simplified ViT with patches of three axes: fixed sine and cosine positions of time, row and column, the
mean of the patches instead of a class token, no dropout, one linear layer as the head.

Family: plain
Differs from the paper: patches and positions have three axes.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.vit_3d import ViT3D


class SimpleViT3D(ViT3D):
    """The simplified Vision Transformer on videos or volumes (b c t h w).

    Args:
        image_size: the largest frame, one number or (height, width) in pixels.
        frames: number of frames (slices of a volume) at most.
        image_patch_size: size of a patch in a frame, one number or (height, width); divides the image size.
        frame_patch_size: frames of a patch; divides `frames`.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token, an even number from 12 on. Channels that the three axes cannot share out
            evenly have no position.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        channels: channels of the input.
        dim_head: width of a head.
        qkv_bias: whether queries, keys and values have biases.
        out_bias: whether the attention's output projection has a bias.
        act: activation of the feed-forward; the paper's code uses the tanh approximation of GELU.
        norm_eps: epsilon of the LayerNorms.
        patch_norm: whether LayerNorms stand before and after the patch projection.
        head_zero_init: whether the classifier starts at zero.

    Raises:
        ValueError: where sizes do not divide.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        frames: int,
        image_patch_size: int | Sequence[int],
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        qkv_bias: bool = True,
        out_bias: bool = True,
        act: str = "gelu_tanh",
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
        head_zero_init: bool = True,
    ) -> None:
        super().__init__(
            image_size=image_size,
            frames=frames,
            image_patch_size=image_patch_size,
            frame_patch_size=frame_patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            pool="mean",
            channels=channels,
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            act=act,
            norm_eps=norm_eps,
            patch_norm=patch_norm,
            positions="sincos",
            head_zero_init=head_zero_init,
        )


SimpleViT = SimpleViT3D
