"""FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness, for videos.

T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré 2022, arXiv:2205.14135.

Attention in one fused kernel, in memory linear in the number of tokens; the model is `simple_vit_3d`.
PyTorch chooses the kernel.

Family: plain
Differs from the paper: as in the public vit-pytorch package, patches are normed before and after their
projection and attention has no biases. That package has no final norm here, so that its weights do not load.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.layers.attention import use_explicit_kernels
from vit_pytorch.simple_vit_3d import SimpleViT3D


class FlashSimpleViT3D(SimpleViT3D):
    """The simplified Vision Transformer on videos or volumes with fused or explicit attention.

    Args:
        use_flash_attn: attend in one fused kernel, instead of step by step.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        image_patch_size: int | Sequence[int],
        frames: int,
        frame_patch_size: int,
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
        use_flash_attn: bool = True,
    ) -> None:
        super().__init__(
            image_size=image_size,
            image_patch_size=image_patch_size,
            frames=frames,
            frame_patch_size=frame_patch_size,
            num_classes=num_classes,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            qkv_bias=False,
            out_bias=False,
            act="gelu",
            norm_eps=1e-5,
            patch_norm=True,
        )
        if not use_flash_attn:
            use_explicit_kernels(self)


SimpleViT = FlashSimpleViT3D
