"""Better plain ViT baselines for ImageNet-1k, with tokens of the spectrum.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

The simplified ViT, whose patches attend to patches of the image's Fourier transform, too.

Family: plain
Differs from the paper: the tokens of the spectrum are of the public vit-pytorch package; as there, patches
are normed before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.blocks import is_tracing, plain_blocks
from vit_pytorch.layers.patches import MaskFn, PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


class FrequencySimpleViT(IsotropicModel):
    """The simplified Vision Transformer with tokens of the spectrum before the patches.

    Images have exactly `image_size`: the frequencies of another size would be others.

    Args:
        freq_patch_size: size of a patch of the spectrum, one number or (height, width); divides the image
            size.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        freq_patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        channels: int = 3,
        dim_head: int = 64,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = SinCosPositions(grid.shape, dim)
        self.frequency_grid = PatchGrid(grid.size, pair(freq_patch_size))
        self.frequency_embed = PatchEmbed(self.frequency_grid, 2 * channels, dim, norm_eps=1e-5)
        self.frequency_positions = SinCosPositions(self.frequency_grid.shape, dim)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            qkv_bias=False,
            out_bias=False,
        )
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    @property
    def num_prefix_tokens(self) -> int:  # type: ignore[override]
        """Number of tokens before the patches: those of the spectrum."""
        return self.frequency_grid.num_patches

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, those of the spectrum first."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, as timm's tools read them."""
        groups = super().group_matcher(coarse)
        return {**groups, "stem": groups["stem"] + r"|^frequency_embed\."}

    def embed(
        self, images: Float[Tensor, "b c h w"], *, mask_fn: MaskFn | None = None, add_positions: bool = True
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the blocks; see `IsotropicModel.embed`."""
        self.check_images(images)
        if not is_tracing(images) and images.shape[2:] != self.grid.size:
            raise ValueError(f"image size must be {self.grid.size}, got {tuple(images.shape[2:])}")
        x, frequencies = self.patch_embed(images), self.frequency_embed(spectrum(images))
        if mask_fn is not None:
            x = mask_fn(x)
        if self.positions is not None and add_positions:
            x, frequencies = self.positions(x), self.frequency_positions(frequencies)
        return torch.cat([frequencies, x], dim=1)


def spectrum(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
    """Compute the Fourier transform of each channel: all real parts, then all imaginary parts."""
    # There is no transform in half precision.
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    parts = torch.view_as_real(torch.fft.fft2(precise))
    return parts.permute(0, 4, 1, 2, 3).flatten(1, 2).to(images.dtype)


SimpleViT = FrequencySimpleViT
