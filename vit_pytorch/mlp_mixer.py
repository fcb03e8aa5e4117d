"""MLP-Mixer: An all-MLP Architecture for Vision.

I. Tolstikhin, N. Houlsby, A. Kolesnikov et al. 2021, arXiv:2105.01601.

A ViT whose attention is replaced by a feed-forward across the patches, the same for every channel. It depends
on where a patch is, so there are no position embeddings, and there is no class token: the mean of the patches
is classified.

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
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs, Ids
from vit_pytorch.layers.blocks import DropPath, FeedForward, drop_path_rate, is_tracing, layer
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair


class MLPMixer(IsotropicModel):
    """The MLP-Mixer. Its feed-forwards across the patches take images of `image_size` only.

    Args:
        token_dim: hidden dimension of the feed-forward across the patches, D_S in the paper.
        mlp_dim: hidden dimension of the feed-forward of each patch, D_C in the paper.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        token_dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
        channels: int = 3,
        drop_path: float = 0.0,
        act: str = "gelu",
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.patch_embed = PatchEmbed(grid, channels, dim)
        for index in range(depth):
            tokens = FeedForward(grid.num_patches, token_dim, dropout=dropout, act=act)
            features = FeedForward(dim, mlp_dim, dropout=dropout, act=act)
            rate = drop_path_rate(drop_path, index, depth)
            self.blocks.append(MixerBlock(norm(dim), tokens, norm(dim), features, drop_path=rate))
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def embed(self, images: Float[Tensor, "b c h w"], **options: Any) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the blocks; see the base class.

        Raises:
            ValueError: if the images are smaller than the model's.
        """
        tokens = super().embed(images, **options)
        if not is_tracing(images) and tuple(images.shape[2:]) != self.image_size:
            raise ValueError(
                f"image size must be {self.image_size}, whose patches are mixed by place, "
                f"got {tuple(images.shape[2:])}"
            )
        return tokens

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Ids | None = None) -> BlockInputs:
        """Return the extra inputs of each block.

        Raises:
            ValueError: if only some of the patches are among the tokens.
        """
        if ids_keep is not None:
            raise ValueError(f"MLPMixer mixes all patches by place, got {ids_keep.shape[1]} kept ones")
        return super().block_inputs(grid)


class MixerBlock(nn.Module):
    """Mix patches, then features (equation 1).

    Args:
        mix_tokens: acts on each channel, across the patches.
        mix_features: acts on each patch, across the channels.
    """

    def __init__(
        self,
        norm1: nn.Module,
        mix_tokens: nn.Module,
        norm2: nn.Module,
        mix_features: nn.Module,
        *,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = norm1
        self.mix_tokens = mix_tokens
        self.norm2 = norm2
        self.mix_features = mix_features
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens."""
        x = x + self.drop_path(self.mix_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_path(self.mix_features(self.norm2(x)))
