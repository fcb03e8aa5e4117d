"""Better plain ViT baselines for ImageNet-1k, for videos and volumes.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

The simplified ViT with patches of three axes: fixed sine and cosine positions of time, row and column, the
mean of the patches instead of a class token, no dropout, one linear layer as the head.

Family: plain
Differs from the paper: patches and positions have three axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel, MaskedFrames
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions
from vit_pytorch.layers.space_time import mask_of_keys, zero_padding


class SimpleViT3D(MaskedFrames, IsotropicModel):
    """The simplified Vision Transformer on videos or volumes (b c t h w).

    Args:
        dim: token dimension, even, at least 12. Channels that the three axes cannot share evenly have no
            position.
        act: activation of the feed-forward; the paper's code uses the tanh approximation of GELU.
        head_zero_init: the classifier starts at zero, as in the paper's code; short trainings learn later so.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        frames: int,
        image_patch_size: int | Sequence[int],
        frame_patch_size: int,
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
        grid = PatchGrid((frames, *pair(image_size)), (frame_patch_size, *pair(image_patch_size)))
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

    def forward_features(
        self, images: Float[Tensor, "b c t h w"], mask: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm; those of padding are there, and say nothing."""
        tokens, inputs = self.embed(images), NO_INPUTS
        if mask is not None:
            keys = mask_of_keys(mask, images, self.grid)
            tokens, inputs = zero_padding(tokens, keys), BlockInputs(mask=keys)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)


SimpleViT = SimpleViT3D
