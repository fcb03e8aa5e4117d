"""Revisiting [CLS] and Patch Token Interaction in Vision Transformers.

A. Marouani, O. Siméoni, H. Jégou, P. Bojanowski, H. V. Vo 2026, arXiv:2602.08626.

The class token and the patches have norms of their own, and in the first layers projections to queries, keys
and values of their own; the model is the simplified ViT (arXiv:2205.01580) with a class token.

Family: plain
Differs from the paper: it is the simplified ViT instead of a ViT or DINOv2; as in the public vit-pytorch
package, patches are normed before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


class SpecializedSimpleViT(IsotropicModel):
    """The simplified Vision Transformer with norms and projections of the class token's own.

    Args:
        specialize_qkv_depth: number of first layers whose projections are two; default a third of `depth`.
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
        specialize_qkv_depth: int | None = None,
    ) -> None:
        first = depth // 3 if specialize_qkv_depth is None else specialize_qkv_depth
        if first > depth:
            raise ValueError(f"specialize_qkv_depth must be at most depth, got {first} and {depth}")
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="cls")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim)
        self.positions = SinCosPositions(grid.shape, dim)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            qkv_bias=False,
            out_bias=False,
            norm=two_norms,
        )
        for block in self.blocks[:first]:
            projections = [nn.Linear(dim, 3 * heads * dim_head, bias=False) for _ in range(2)]
            for linear in projections:
                init_xavier(linear, parts=3)
            block.attention.to_qkv = ByToken(*projections)  # type: ignore[union-attr]
        self.norm = two_norms(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norms, the class token first."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class ByToken(nn.Module):
    """Apply one module to the class token, and another one to the patches.

    Args:
        class_token: acts on the first token.
        patches: acts on the others.
    """

    def __init__(self, class_token: nn.Module, patches: nn.Module) -> None:
        super().__init__()
        self.class_token = class_token
        self.patches = patches

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        """Transform all tokens."""
        return torch.cat([self.class_token(x[:, :1]), self.patches(x[:, 1:])], dim=1)


def two_norms(dim: int) -> ByToken:
    """Build a LayerNorm of the class token and one of the patches."""
    return ByToken(nn.LayerNorm(dim), nn.LayerNorm(dim))


SimpleViT = SpecializedSimpleViT
