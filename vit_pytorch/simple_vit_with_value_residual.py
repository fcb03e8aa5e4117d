"""Value Residual Learning, in the simplified ViT.

Z. Zhou, T. Wu, Z. Jiang, F. Obeid, Z. Lan 2024, arXiv:2410.17897.

Every layer after the first mixes the first layer's values into its own; the model is the simplified ViT
(arXiv:2205.01580).

Family: plain
Differs from the paper: shares come from a gate of each token and head, as in the public vit-pytorch package,
instead of two learned numbers of each layer; patches are normed before and after their projection and
attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit import ViT


class ValueResidualSimpleViT(ViT):
    """The simplified Vision Transformer whose layers mix in the first layer's values."""

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
            value_residual="gated",
            **PUBLIC_FORM,
        )


SimpleViT = ValueResidualSimpleViT
