"""FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness, in the simplified ViT.

T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré 2022, arXiv:2205.14135.

Attention in one fused kernel, in memory linear in the number of tokens; the model is the simplified ViT
(arXiv:2205.01580). PyTorch chooses the kernel.

Family: plain
Differs from the paper: the final norm acts on the pooled vector; as in the public vit-pytorch package,
patches are normed before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.layers.attention import use_explicit_kernels
from vit_pytorch.layers.tokens import Head
from vit_pytorch.simple_vit import PUBLIC_FORM
from vit_pytorch.vit import ViT


class FlashSimpleViT(ViT):
    """The simplified Vision Transformer with fused or explicit attention.

    Args:
        use_flash: attend in one fused kernel, instead of step by step.
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
        use_flash: bool = True,
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
            head=Head(norm=True),
            **PUBLIC_FORM,
        )
        if not use_flash:
            use_explicit_kernels(self)


SimpleViT = FlashSimpleViT
