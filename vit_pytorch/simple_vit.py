"""Better plain ViT baselines for ImageNet-1k.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

Simplifies the ViT: fixed 2-D sine and cosine positions, the mean of the patches instead of a class
token, no dropout, one linear layer as the head; trained with a smaller batch, RandAugment and MixUp.

Family: plain
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.vit import ViT


class SimpleViT(ViT):
    """The simplified Vision Transformer.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token, a multiple of 4.
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
        patch_size: int | Sequence[int],
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
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            pool="mean",
            dim_head=dim_head,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            act=act,
            norm_eps=norm_eps,
            patch_norm=patch_norm,
            positions="sincos",
            head_zero_init=head_zero_init,
        )
