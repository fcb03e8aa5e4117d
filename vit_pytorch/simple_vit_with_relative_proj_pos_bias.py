"""Better plain ViT baselines for ImageNet-1k, with relative positions that each token projects.

L. Beyer, X. Zhai, A. Kolesnikov 2022, arXiv:2205.01580.

The simplified ViT, whose scores get a bias by the distance of query and key along each axis; each query
weighs learned curves over the distance, by a projection of its token.

Family: plain
Differs from the paper: the bias is of the public vit-pytorch package; as there, patches are normed before and
after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs
from vit_pytorch.layers.blocks import Block, FeedForward, layer
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.offsets import cells
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


class ProjectedBiasSimpleViT(IsotropicModel):
    """The simplified Vision Transformer with projected relative positions.

    Args:
        num_distance_basis: curves over the distance along each axis.
        max_dist: distances that a curve has; the bias is zero for patches that are further apart.
    """

    undecayed = IsotropicModel.undecayed + r"|\.distance_banks$"

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
        num_distance_basis: int = 16,
        max_dist: int = 512,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = SinCosPositions(grid.shape, dim)
        self.blocks = nn.ModuleList(
            ProjectedBiasBlock(
                dim,
                Attention(dim, heads=heads, dim_head=dim_head, qkv_bias=False, out_bias=False),
                FeedForward(dim, mlp_dim),
                num_distance_basis=num_distance_basis,
                max_dist=max_dist,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        return self.encode(self.embed(images), self.grid.fit(images.shape[2:]))


class ProjectedBiasBlock(Block):
    """A block with a bias of its scores that is computed from the tokens, before they are normed."""

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        num_distance_basis: int,
        max_dist: int,
    ) -> None:
        super().__init__(dim, attention, feedforward)
        heads: int = attention.heads  # type: ignore[assignment]
        self.bias = RelativeProjPositionalBias(
            dim, heads, num_distance_basis=num_distance_basis, max_dist=max_dist
        )

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens.

        Args:
            inputs: the grid of the patches, and which of them are there.

        Raises:
            ValueError: if there is no grid.
        """
        if inputs.grid is None:
            raise ValueError("relative positions need the grid of the patches")
        inputs = replace(inputs, mask=self.bias.of_tokens(x, inputs.grid, inputs.ids_keep))
        x = x + self.attention(self.norm1(x), inputs)
        return x + self.feedforward(self.norm2(x))


class RelativeProjPositionalBias(nn.Module):
    """A bias by the distance of query and key along each axis: learned curves, weighed by each query.

    Args:
        dim_pos: number of axes.
        num_distance_basis: curves along each axis.
        max_dist: distances that a curve has, in patches; the bias is zero beyond.
    """

    @checks_arguments
    def __init__(
        self, dim: int, heads: int, dim_pos: int = 2, num_distance_basis: int = 16, max_dist: int = 512
    ) -> None:
        super().__init__()
        self.heads = heads
        self.max_dist = max_dist
        self.to_distance_weights = nn.Linear(dim, dim_pos * heads * num_distance_basis)
        self.distance_banks = nn.Parameter(torch.empty(dim_pos, num_distance_basis, 2 * max_dist - 1))
        init_xavier(self.to_distance_weights)
        nn.init.normal_(self.distance_banks, std=0.02)

    def forward(self, x: Float[Tensor, "b *grid d"]) -> Float[Tensor, "b h n m"]:
        """Return the bias of each head, query and key, of all patches of a grid.

        Raises:
            ValueError: if the grid has another number of axes.
        """
        grid = x.shape[1:-1]
        if len(grid) != len(self.distance_banks):
            raise ValueError(f"expected a grid of {len(self.distance_banks)} axes, got {tuple(grid)}")
        return self.of_tokens(x.flatten(1, -2), grid)

    def of_tokens(
        self, x: Float[Tensor, "b n d"], grid: Sequence[int], ids_keep: Int[Tensor, "b n"] | None = None
    ) -> Float[Tensor, "b h n m"]:
        """Return the bias of each head, query and key.

        Args:
            grid: patches along each axis.
            ids_keep: positions in the grid of the tokens; default all of them.
        """
        places = cells(grid).to(x.device)
        places = places[None] if ids_keep is None else places[ids_keep]
        # distance of key m from query n, (b 1 n m a)
        apart = (places[:, :, None] - places[:, None])[:, None]
        weights = self.to_distance_weights(x).unflatten(2, (len(grid), self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = x.new_zeros(())
        for axis, extent in enumerate(grid):
            # only the distances that this grid has
            reach = min(extent, self.max_dist) - 1
            bank = self.distance_banks[axis, :, self.max_dist - 1 - reach : self.max_dist + reach]
            index = apart[..., axis].clamp(-reach, reach) + reach
            curves = weights[axis] @ bank
            bias = bias + curves.gather(-1, index.expand(*curves.shape[:3], -1))
        if max(grid) > self.max_dist:
            bias = bias * (apart.abs() < self.max_dist).all(dim=-1)
        return bias


SimpleViT = ProjectedBiasSimpleViT
