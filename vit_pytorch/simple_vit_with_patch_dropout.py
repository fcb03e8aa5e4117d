"""PatchDropout: Economizing Vision Transformers Using Patch Dropout, in the simplified ViT.

Y. Liu, C. Matsoukas, F. Strand, H. Azizpour, K. Smith 2022, arXiv:2208.07220.

Drops a share of the patches in training, others of each sample; the model is the simplified ViT
(arXiv:2205.01580).

Family: plain
Differs from the paper: as in the public vit-pytorch package, patches are normed before and after their
projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit import ViT


class PatchDropoutSimpleViT(ViT):
    """The simplified Vision Transformer that drops patches in training.

    Args:
        patch_dropout: share of the patches that is dropped in training, in [0, 1).
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
        patch_dropout: float = 0.5,
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
            dim_head=dim_head,
            patch_dropout=patch_dropout,
            **PUBLIC_FORM,
        )


SimpleViT = PatchDropoutSimpleViT
