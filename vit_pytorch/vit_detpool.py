"""An Image is Worth 16x16 Words, attending to and pooling objects only.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

"DetPool": the ViT with a mask of an object, given or from a detector; only patches that touch the object are
attended to and pooled (D. Niu et al., openreview.net/forum?id=NZDaMcpXZm).

Family: plain
Differs from the paper: the mask, and the mean of the object's patches instead of the class token; as in the
public vit-pytorch package, the class token has no position, patches are normed before and after their
projection, and queries, keys and values have no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.blocks import is_tracing, plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions


class DetPoolViT(IsotropicModel):
    """The Vision Transformer that attends to and pools the patches of an object.

    Args:
        use_cls_token: have a class token, which takes part in attention and is not pooled.
        mask_generator: returns masks (b h w) of images where none are given; it is not trained. Models with
            one cannot be saved with their configuration.
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
        use_cls_token: bool = True,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        mask_generator: nn.Module | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.prefix = PrefixTokens(dim, class_token=use_cls_token)
        self.positions = LearnedPositions(grid.shape, dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            attn_dropout=dropout,
            qkv_bias=False,
        )
        self.norm = nn.LayerNorm(dim)
        self.mask_generator = mask_generator
        self.reset_classifier(num_classes)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        object_mask: Bool[Tensor, "b y x"] | Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b k ..."]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: input.
            object_mask: true for the object, of each pixel or of each patch; default that of the generator,
                or all patches.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes, or the
                mask is of another size, or empty for an image.
        """
        if object_mask is None and self.mask_generator is not None:
            with torch.no_grad():
                object_mask = self.mask_generator.eval()(images)
        mask = None if object_mask is None else self.mask_of_patches(object_mask, images)
        return self.forward_head(self.forward_features(images, mask), mask=mask)

    def mask_of_patches(self, mask: Tensor, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b n"]:
        """Return which patches touch the object.

        Raises:
            ValueError: if the mask is of another size, or empty for an image.
        """
        grid = self.grid.fit(images.shape[2:])
        if mask.shape == (len(images), *images.shape[2:]):
            mask = self.grid.patchify(mask[:, None]).any(dim=-1)
        elif mask.shape in ((len(images), *grid), (len(images), grid[0] * grid[1])):
            mask = mask.flatten(1)
        else:
            raise ValueError(
                f"object_mask must have the images' {tuple(images.shape[2:])} pixels or the grid's {grid} "
                f"patches, of {len(images)} images; got shape {tuple(mask.shape)}"
            )
        mask = mask.bool()
        if not is_tracing(mask) and not mask.is_meta and not mask.any(dim=1).all():
            raise ValueError("object_mask must have a patch for each image, got an empty one")
        return mask

    def forward_features(
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b m d"]:
        """Return all tokens after the final norm, the class token first; nothing attends to hidden patches.

        Args:
            mask: true for patches that are attended to.
        """
        tokens = self.embed(images)
        keys = None if mask is None else F.pad(mask, (len(self.prefix), 0), value=True)[:, None, None]
        inputs = BlockInputs(self.grid.fit(images.shape[2:]), len(self.prefix), mask=keys)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def forward_head(
        self, features: Any, pre_logits: bool = False, mask: Bool[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b k ..."]:
        """Pool the patches of the object and classify them; see `VisionModel.forward_head`."""
        if self.unpooled:
            return super().forward_head(features)
        patches = features[:, len(self.prefix) :]
        if mask is None:
            x = patches.mean(dim=1)
        else:
            share = mask.to(patches.dtype)
            x = (patches * share[..., None]).sum(dim=1) / share.sum(dim=1, keepdim=True)
        x = self.to_latent(x)
        return x if pre_logits else self.head(x)


ViTDetPool = DetPoolViT
