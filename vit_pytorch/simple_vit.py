"""Better plain ViT baselines for ImageNet-1k.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

Simplifies the ViT: fixed 2-D sine and cosine positions, the mean of the patches instead of a class
token, no dropout, one linear layer as the head; trained with a smaller batch, RandAugment and MixUp.

Family: plain
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions

# The options with which a `ViT` is the SimpleViT of the public vit-pytorch package, whose weights load.
PUBLIC_FORM: dict[str, Any] = {
    "pool": "mean",
    "positions": "sincos",
    "stem": "dual_norm",
    "qkv_bias": False,
    "out_bias": False,
    "norm_eps": 1e-5,
}


class SimpleViT(IsotropicModel):
    """The simplified Vision Transformer.

    Args:
        dim: token dimension, a multiple of 4.
        act: activation of the feed-forward; the paper's code uses the tanh approximation of GELU.
        head_zero_init: the classifier starts at zero, as in the paper's code; short trainings learn later so.
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
        qkv_bias: bool = True,
        out_bias: bool = True,
        act: str = "gelu_tanh",
        norm_eps: float = 1e-6,
        patch_norm: bool = False,
        head_zero_init: bool = False,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=norm_eps if patch_norm else None)
        self.positions = SinCosPositions(grid.shape, dim)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            act=act,
            norm=norm,
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)
        if head_zero_init:
            init_linears(self.head, nn.init.zeros_)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)
