"""Hyper-Connections, in the simplified ViT.

D. Zhu, H. Huang, Z. Huang, Y. Zeng, Y. Mao, B. Wu, Q. Min, X. Zhou 2024, arXiv:2409.19606.

Several residual streams, with learned connections that depend on the token; the model is the simplified ViT
(arXiv:2205.01580) with registers (arXiv:2309.16588).

Family: plain
Differs from the paper: as in the public vit-pytorch package, patches are normed before and after their
projection and attention has no biases. The norms of the connections have biases; those of that package's
weights are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit import ViT


class HyperConnectionSimpleViT(ViT):
    """The simplified Vision Transformer with hyper-connections and register tokens.

    Args:
        num_residual_streams: number of residual streams.
        num_register_tokens: number of register tokens.
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
        num_residual_streams: int,
        num_register_tokens: int = 4,
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
            hyper_connections=num_residual_streams,
            num_registers=num_register_tokens,
            **PUBLIC_FORM,
        )


SimpleViT = HyperConnectionSimpleViT
