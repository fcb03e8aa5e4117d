"""RoFormer: Enhanced Transformer with Rotary Position Embedding, for arrays of one to seven axes.

J. Su, Y. Lu, S. Pan, A. Murtadha, B. Wen, Y. Liu 2021, arXiv:2104.09864.

The ViT (arXiv:2010.11929) on arrays of any number of axes with rotary positions: each pair of channels of
each head turns by the position along a direction of its own, and the directions are spread evenly over the
sphere (J. Xiong, "On n-dimensional rotary positional embeddings", jerryxio.ng/posts/nd-rope). Patches are
pooled by their mean.

Family: plain
Differs from the paper: positions have any number of axes; as in the public vit-pytorch package, patches are
normed after their projection, and queries, keys and values have no biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import Attention, BlockInputs
from vit_pytorch.layers.blocks import plain_blocks
from vit_pytorch.layers.offsets import cells, crop_cells
from vit_pytorch.layers.patches import warn_if_few
from vit_pytorch.layers.positions import ComputedBuffers
from vit_pytorch.layers.rotary import RotaryPositions, turns
from vit_pytorch.vit_nd import PatchProjection, causal_mask, make_grid, read_axes


class RotaryViTND(IsotropicModel):
    """The Vision Transformer on arrays of one to seven axes (b c ...), with rotary positions.

    An array may be smaller than `input_shape`. Maps of `forward_intermediates` have the axes (b d ...).

    Args:
        ndim: number of axes.
        input_shape: size of the largest array, one number for all axes or one for each.
        patch_size: size of a patch, one number for all axes or one for each; divides `input_shape`.
        dim_head: head dimension, even.
        rope_min_freq: lowest frequency, in radians a patch.
        rope_max_freq: highest frequency; between, they rise geometrically.
        rope_p_zero_freqs: share of the pairs of channels that do not turn, in [0, 1].
        causal_dims: axes along which a patch sees only patches at its own place or before it; default none.

    Raises:
        ValueError: if the number of axes is out of range, or is not that of the sizes, or heads have an odd
            dimension.
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
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        rope_min_freq: float = 1.0,
        rope_max_freq: float = 10_000.0,
        rope_p_zero_freqs: float = 0.0,
        causal_dims: int | Sequence[int] | None = None,
    ) -> None:
        grid = make_grid(ndim, input_shape, patch_size)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        if dim_head % 2:
            raise ValueError(f"dim_head must be even, got {dim_head}")
        self.causal_dims = read_axes(causal_dims, ndim)
        self.patch_embed = PatchProjection(grid, channels, dim)
        self.dropout = nn.Dropout(emb_dropout)
        still = round(rope_p_zero_freqs * (dim_head // 2))
        self.rotary = GoldenRotary(
            grid.shape, heads, [0.0] * still + spread(rope_min_freq, rope_max_freq, dim_head // 2 - still)
        )
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dropout=dropout,
            qkv_bias=False,
        )
        for part in self.blocks.modules():
            if isinstance(part, Attention):
                part.position = RotaryPositions()
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward(
        self, images: Float[Tensor, "b c *size"], return_embed: bool = False
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b *grid d"]:
        """Compute logits, or the pooled embedding if `num_classes` is 0.

        Args:
            images: arrays.
            return_embed: return the patches in their grid instead, channels last.

        Raises:
            ValueError: if rank, channels, size or dtype of the arrays are not what the model takes.
        """
        features = self.forward_features(images)
        if not return_embed:
            return self.forward_head(features)
        return features.unflatten(1, self.grid.fit(images.shape[2:]))

    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return self.norm(tokens)

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: rotations, and which patches each sees."""
        mask = None
        if self.causal_dims:
            mask = causal_mask(grid, self.causal_dims, ids_keep, device=self.rotary.table.device)
        return BlockInputs(tuple(grid), 0, ids_keep, mask=mask, rotation=self.rotary(grid, ids_keep))


class GoldenRotary(ComputedBuffers):
    """Rotations by fixed frequencies, along a direction of its own for each pair of channels of each head.

    Args:
        grid: cells along each axis, of the largest input.
        heads: number of heads.
        frequencies: frequency of each pair of channels of a head.
    """

    table: Tensor

    def __init__(self, grid: Sequence[int], heads: int, frequencies: Sequence[float]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.heads = heads
        self.frequencies = tuple(frequencies)
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the rotation of each cell."""
        frequency = torch.tensor(self.frequencies, dtype=torch.float64)
        directions = even_directions(self.heads * len(frequency), len(self.grid))
        waves = directions.unflatten(0, (self.heads, -1)) * frequency[:, None]
        angles = cells(self.grid).double() @ waves.mT
        return {"table": turns(angles).float()}

    def forward(
        self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "*b h n f 2"]:
        """Return the rotation of each token and head."""
        rotation = crop_cells(self.table, self.grid, grid, dim=1)
        return rotation if ids_keep is None else rotation[:, ids_keep].transpose(0, 1)


def spread(lowest: float, highest: float, count: int) -> list[float]:
    """Return numbers that rise geometrically between two."""
    return [lowest * (highest / lowest) ** (index / max(count - 1, 1)) for index in range(count)]


def even_directions(count: int, axes: int) -> Float[Tensor, "k r"]:
    """Return unit vectors that are spread evenly over the sphere.

    A sequence of low discrepancy in the unit cube, whose steps are powers of the generalised golden ratio
    (the root of x^(axes + 1) = x + 1), is mapped to normal variates, of which only the directions count.
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (axes + 1))
    steps = ratio ** -torch.arange(1, axes + 1, dtype=torch.float64)
    points = (torch.arange(1, count + 1, dtype=torch.float64)[:, None] * steps).frac()
    return F.normalize(torch.erfinv(2 * points - 1), dim=-1)


ViTND = RotaryViTND
