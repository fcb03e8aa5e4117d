"""Vision Transformers Need Registers, in the simplified ViT.

T. Darcet, M. Oquab, J. Mairal, P. Bojanowski 2023, arXiv:2309.16588.

Learned tokens of no patch take part in attention and are not pooled; the model is the simplified ViT
(arXiv:2205.01580).

Family: plain
Differs from the paper: there is no class token; as in the public vit-pytorch package, patches are normed
before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit import ViT


class RegisterSimpleViT(ViT):
    """The simplified Vision Transformer with register tokens.

    Args:
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
            num_registers=num_register_tokens,
            **PUBLIC_FORM,
        )


SimpleViT = RegisterSimpleViT
