"""All are Worth Words: A ViT Backbone for Diffusion Models, in the simplified ViT.

F. Bao, S. Nie, K. Xue, Y. Cao, C. Li, H. Su, J. Zhu 2022, arXiv:2209.12152.

The long skips of `uvit` in the simplified ViT (arXiv:2205.01580) with registers (arXiv:2309.16588), as a
classifier.

Family: plain
Differs from the paper: positions are fixed, tokens of times and labels are registers, and patches are normed
before and after their projection. The public vit-pytorch package passes the inputs of blocks on instead of
their outputs, and has no block in the middle of an even depth, so that its weights do not load.
"""

from __future__ import annotations

from collections.abc import Sequence

from vit_pytorch.layers.patches import PatchEmbed, PrefixTokens
from vit_pytorch.layers.positions import SinCosPositions
from vit_pytorch.uvit import UViT


class SimpleUViT(UViT):
    """The U-ViT with fixed positions and register tokens.

    Args:
        depth: number of blocks apart from the one in the middle; an odd number counts that one, too.
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
        )
        self.patch_embed = PatchEmbed(self.grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim, class_token=False, registers=num_register_tokens)
        self.positions = SinCosPositions(self.grid.shape, dim)
