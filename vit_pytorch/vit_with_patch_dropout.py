"""PatchDropout: Economizing Vision Transformers Using Patch Dropout.

Y. Liu, C. Matsoukas, F. Strand, H. Azizpour, K. Smith 2022, arXiv:2208.07220.

Drops a share of the patches in training, others of each sample, which saves memory and time.

Family: plain
Differs from the paper: as in the public vit-pytorch package, the class token has no position, the final norm
acts on what is pooled, and queries, keys and values have no biases. Pooling by the mean leaves the class
token out, and the model has none then; that package averages it with the patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vit_pytorch.layers.positions import Learned
from vit_pytorch.layers.tokens import Head
from vit_pytorch.vit import ViT as PlainViT


class PatchDropoutViT(PlainViT):
    """The Vision Transformer that drops patches in training.

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
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        patch_dropout: float = 0.25,
    ) -> None:
        super().__init__(
            image_size=image_size,
            patch_size=patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            pool=pool,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            attn_dropout=dropout,
            emb_dropout=emb_dropout,
            patch_dropout=patch_dropout,
            positions=Learned(class_token=False),
            qkv_bias=False,
            norm_eps=1e-5,
            head=Head(norm=True),
        )


ViT = PatchDropoutViT
