"""An Image is Worth 16x16 Words, for arrays of one to seven axes.

A. Dosovitskiy, L. Beyer, A. Kolesnikov, D. Weissenborn, X. Zhai et al. 2020, arXiv:2010.11929.

The ViT on arrays of any number of axes, such as volumes over time. A patch may be kept from attending to
patches that come later along some axes, such as time.

Family: plain
Differs from the paper: patches have any number of axes, and are normed after their projection; as in the
public vit-pytorch package, queries, keys and values have no biases. With causal axes, patches do not see the
class token, which sees all of them; in that package they do, so that a layer later they know what comes
after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import BlockInputs
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.offsets import cells
from vit_pytorch.layers.patches import PatchGrid, PrefixTokens, warn_if_few
from vit_pytorch.layers.positions import LearnedPositions

MOST_AXES = 7


class ViTND(IsotropicModel):
    """The Vision Transformer on arrays of one to seven axes (b c ...).

    An array may be smaller than `input_shape`. Maps of `forward_intermediates` have the axes (b d ...).

    Args:
        ndim: number of axes.
        input_shape: size of the largest array, one number for all axes or one for each.
        patch_size: size of a patch, one number for all axes or one for each; divides `input_shape`.
        causal_dims: axes along which a patch sees only patches at its own place or before it; default none.

    Raises:
        ValueError: if the number of axes is out of range, or is not that of the sizes.
    """

    def __init__(
        self,
        *,
        ndim: int,
        input_shape: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        causal_dims: int | Sequence[int] | None = None,
    ) -> None:
        grid = make_grid(ndim, input_shape, patch_size)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        warn_if_few(grid)
        self.causal_dims = read_axes(causal_dims, ndim)
        self.patch_embed = PatchProjection(grid, channels, dim)
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            qkv_bias=False,
        )
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward(  # type: ignore[override]
        self, images: Float[Tensor, "b c *size"], return_nd_patches: bool = False
    ) -> Float[Tensor, "b k"] | tuple[Float[Tensor, "b d"], Float[Tensor, "b d *grid"]]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: arrays.
            return_nd_patches: return the class token, and the patches as a map, instead.

        Raises:
            ValueError: if rank, channels, size or dtype of the arrays are not what the model takes.
        """
        features = self.forward_features(images)
        if not return_nd_patches:
            return self.forward_head(features)
        return features[:, 0], features[:, 1:].mT.unflatten(2, self.grid.fit(images.shape[2:]))

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm, the class token first (section 3.1)."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: which patches each patch sees, with causal axes."""
        mask = None
        if self.causal_dims:
            device = next(self.parameters()).device
            mask = causal_mask(grid, self.causal_dims, ids_keep, prefix=1, device=device)
        return BlockInputs(tuple(grid), 1, ids_keep, mask=mask)


class PatchProjection(nn.Module):
    """Project patches of any number of axes linearly, then normalise them."""

    def __init__(self, grid: PatchGrid, channels: int, dim: int) -> None:
        super().__init__()
        self.grid = grid
        size = channels * prod(grid.patch)
        self.proj = nn.Linear(size, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.trunc_normal_(self.proj.weight, std=size**-0.5)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed an array; the tokens come in row-major order of the grid."""
        return self.norm(self.proj(self.grid.patchify(x)))


def make_grid(ndim: int, input_shape: int | Sequence[int], patch_size: int | Sequence[int]) -> PatchGrid:
    """Return the grid of an array of so many axes.

    Raises:
        ValueError: if the number of axes is out of range, or is not that of the sizes.
    """
    if not 1 <= ndim <= MOST_AXES:
        raise ValueError(f"ndim must be in [1, {MOST_AXES}], got {ndim}")
    sizes = [(size,) * ndim if isinstance(size, int) else tuple(size) for size in (input_shape, patch_size)]
    if any(len(size) != ndim for size in sizes):
        raise ValueError(f"input_shape and patch_size must have {ndim} axes, got {sizes[0]} and {sizes[1]}")
    return PatchGrid(*sizes)


def read_axes(axes: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return the causal axes.

    Raises:
        ValueError: if there is no such axis.
    """
    found = (axes,) if isinstance(axes, int) else tuple(axes or ())
    if not all(0 <= axis < ndim for axis in found):
        raise ValueError(f"causal_dims must be in [0, {ndim - 1}], got {found}")
    return found


def causal_mask(
    grid: Sequence[int],
    axes: Sequence[int],
    ids_keep: Int[Tensor, "b k"] | None = None,
    *,
    prefix: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """Return which tokens each token sees (n m), or (b 1 n m) if patches are missing.

    Patches see patches that are not after them along any of the axes; prefix tokens see everything, and only
    they see themselves.

    Args:
        axes: the causal axes.
    """
    places = cells(grid).to(device)[:, list(axes)]
    places = places if ids_keep is None else places[ids_keep]
    seen = (places.unsqueeze(-2) >= places.unsqueeze(-3)).all(dim=-1)
    seen = nn.functional.pad(seen, (prefix, 0), value=False)
    seen = nn.functional.pad(seen, (0, 0, prefix, 0), value=True)
    return seen if ids_keep is None else seen[:, None]
