"""Scaling Vision Transformers to 22 Billion Parameters, queries and keys normed in the simplified ViT.

M. Dehghani, J. Djolonga, B. Mustafa, P. Padlewski, J. Heek et al. 2023, arXiv:2302.05442.

Queries and keys are normed (section 2), so that attention scores stay bounded; the model is the simplified
ViT (arXiv:2205.01580).

Family: plain
Differs from the paper: RMS norm with gains per head stands in for LayerNorm, as in the public vit-pytorch
package; patches are normed before and after their projection and attention has no biases. That package
multiplies no score by 1 / sqrt(dim_head), which loading makes up for, and has a LayerNorm where the
classifier belongs: its `linear_head` is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit import ViT


class QKNormSimpleViT(ViT):
    """The simplified Vision Transformer with RMS-normed queries and keys."""

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
            qk_norm="rms",
            **PUBLIC_FORM,
        )


SimpleViT = QKNormSimpleViT
