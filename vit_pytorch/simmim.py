"""SimMIM: A Simple Framework for Masked Image Modeling.

Z. Xie, Z. Zhang, Y. Cao, Y. Lin, J. Bao, Z. Yao, Q. Dai, H. Hu 2021, arXiv:2111.09886.

Squares of the image are covered by a mask token; the encoder sees all patches, and one linear layer predicts
the covered pixels.

Family: self-supervised
Differs from the paper: the encoder keeps the positions that it has; the authors' ViT has relative ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.patches import PatchGrid, pair
from vit_pytorch.ssl.masks import as_maskable, check_ratio, check_shape, cover, draw_mask, patch_tokens


class SimMIM(nn.Module):
    """The loss of masked image modelling around a model, which learns.

    The model is the object that was passed in, so that its own weights can be saved afterwards. It runs as
    it does in use, with all tokens, the class token included, and with dropout in training. The mask token
    replaces embedded patches, before they have positions.

    Args:
        encoder: a model of one sequence of tokens (`learning.backbone.Backbone`), or a plain ViT of timm.
        masking_ratio: share of the squares that is covered, in (0, 1); rounded up to whole squares.
        mask_patch_size: side of a square in pixels, one number or (height, width): a multiple of the patch,
            of which the image is a multiple (section 3.2). By default at most the paper's 32 pixels, and so
            small that at least four fit along each side of the image.

    Raises:
        ValueError: where a number is out of range, or the model is no sequence of tokens.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        encoder: nn.Module,
        masking_ratio: float = 0.6,
        mask_patch_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_ratio("masking_ratio", masking_ratio)
        self.encoder = as_maskable(encoder)
        grid = self.encoder.grid
        side = mask_side(grid) if mask_patch_size is None else pair(mask_patch_size)
        if any(s % p for s, p in zip(side, grid.patch, strict=True)):
            raise ValueError(f"mask_patch_size {side} is not a multiple of patch size {grid.patch}")
        if any(extent % s for extent, s in zip(grid.size, side, strict=True)):
            raise ValueError(f"image size {grid.size} is not a multiple of mask_patch_size {side}")
        self.masking_ratio = masking_ratio
        self.unit = tuple(s // p for s, p in zip(side, grid.patch, strict=True))
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.encoder.num_features))
        self.to_pixels = nn.Linear(
            self.encoder.num_features, self.encoder.channels * grid.patch[0] * grid.patch[1]
        )
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone, beside the model's."""
        return {"mask_token"}

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b ..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the loss: the mean absolute error of the covered pixels (section 3.4).

        Args:
            mask: true for the patches to cover, (b, n) or (b, rows, columns); drawn unless given.

        Returns:
            The mean over all covered pixels of the batch; 0 where a given mask covers none.

        Raises:
            ValueError: where the images are not what the model takes, or the mask has another shape.
        """
        if mask is None:
            mask = self.draw_mask(images, generator)
        predicted = self.predict(images, mask)
        apart = (predicted - self.encoder.patchify(images)).abs().mean(dim=-1)
        covered = mask.flatten(1)
        return (apart * covered).sum() / covered.sum().clamp(min=1)

    def draw_mask(
        self, images: Float[Tensor, "b c h w"], generator: torch.Generator | None = None
    ) -> Bool[Tensor, "b n"]:
        """Choose the patches of images that are covered, in whole squares."""
        grid = self.encoder.grid.fit(images.shape[2:])
        return draw_mask(
            len(images), grid, self.masking_ratio, unit=self.unit, device=images.device, generator=generator
        )

    def predict(
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b ..."]
    ) -> Float[Tensor, "b n p"]:
        """Return the prediction for every patch, in the order (row, column, channel).

        Args:
            mask: true for the patches to cover, (b, n) or (b, rows, columns).
        """
        grid = self.encoder.grid.fit(images.shape[2:])
        check_shape("mask", mask, (len(images), grid[0] * grid[1]) if mask.ndim < 3 else (len(images), *grid))
        if mask.dtype != torch.bool:
            raise ValueError(f"a mask is of dtype {torch.bool}, got {mask.dtype}")
        covered = mask.flatten(1)
        tokens = self.encoder.embed(images, mask_fn=lambda patches: cover(patches, covered, self.mask_token))
        features = self.encoder.encode(tokens, grid)
        return self.to_pixels(patch_tokens(features, self.encoder.num_prefix_tokens, covered.shape[1]))


def mask_side(grid: PatchGrid) -> tuple[int, ...]:
    """Return the largest square of whole patches that is at most 32 pixels and a quarter of the image."""

    def fits(side: int, extent: int) -> bool:
        return extent % side == 0 and side <= min(32, extent // 4)

    return tuple(
        max([patch, *(side for side in range(patch, 33, patch) if fits(side, extent))])
        for extent, patch in zip(grid.size, grid.patch, strict=True)
    )
