"""$title$stop

$authors $year, arXiv:$arxiv.

FILL: what the paper changes, in two or three sentences.

Family: FILL
Differs from the paper: FILL, the truth, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import SinCosPositions


class $kind(IsotropicModel):
    """FILL: what the model is, and its own arguments; those that all models share are explained in `base.py`."""

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
        dropout: float = 0.0,
        channels: int = 3,
        dim_head: int = 64,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        norm = partial(nn.LayerNorm, eps=norm_eps)
        self.patch_embed = PatchEmbed(grid, channels, dim)
        # FILL: the paper's own parts; a part of another paper moves to `layers` when this is its second user.
        self.positions = SinCosPositions(grid.shape, dim)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            drop_path=drop_path,
            norm=norm,
        )
        self.norm = norm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)
