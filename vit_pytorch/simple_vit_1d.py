"""Better plain ViT baselines for ImageNet-1k, for signals.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

The simplified ViT on arrays of one axis: fixed sine and cosine positions, the mean of the patches instead of
a class token, one linear layer as the head.

Family: plain
Differs from the paper: patches have one axis; as in the public vit-pytorch package, they are normed before
and after their projection, and attention has no biases.
"""

from __future__ import annotations

from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit_1d import ViT1D

FORM = {**PUBLIC_FORM, "patch_norm": True}
del FORM["stem"]


class SimpleViT1D(ViT1D):
    """The simplified Vision Transformer on signals (b c n).

    Args:
        seq_len: length of the longest signal.
        patch_size: length of a patch; divides `seq_len`.
        dim: token dimension, a multiple of 2.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
    ) -> None:
        super().__init__(
            seq_len=seq_len,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            **FORM,
        )


SimpleViT = SimpleViT1D
