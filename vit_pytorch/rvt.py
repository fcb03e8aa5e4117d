"""RoFormer: Enhanced Transformer with Rotary Position Embedding, in a ViT with convolved queries.

J. Su, Y. Lu, S. Pan, A. Murtadha, B. Wen, Y. Liu 2021, arXiv:2104.09864.

The public vit-pytorch package's "Rotary Vision Transformer": a ViT (arXiv:2010.11929) with rotary positions
of rows and columns, queries that come from a depthwise-separable convolution as in CvT (arXiv:2103.15808),
and gated feed-forwards (GEGLU, arXiv:2002.05202).

Family: plain
Differs from the paper: positions have two axes and count from -1 to 1 over the image, with frequencies that
rise linearly up to half of the image size; the public package leaves `emb_dropout` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import pi

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, Attention, BlockInputs, FusedAttention, split_heads
from vit_pytorch.layers.blocks import Block, FeedForward, fx_leaf
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair, token_ids, warn_if_few
from vit_pytorch.layers.positions import ComputedBuffers
from vit_pytorch.layers.rotary import RotaryPositions, turns

KERNEL = 5


class RvT(IsotropicModel):
    """The Rotary Vision Transformer.

    Args:
        dim_head: head dimension; with rotary positions at least 4.
        use_rotary: rotate queries and keys by their positions; without, only convolutions know of them.
        use_ds_conv: queries come from a convolution, instead of from their tokens.
        use_glu: gate the hidden layer of feed-forwards.

    Raises:
        ValueError: if heads have no pair of channels for each axis.
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
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        use_rotary: bool = True,
        use_ds_conv: bool = True,
        use_glu: bool = True,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="cls")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim)
        self.prefix = PrefixTokens(dim)
        self.dropout = nn.Dropout(emb_dropout)
        self.rotary = ImageRotary(dim_head, max(grid.size)) if use_rotary else None

        def block() -> Block:
            attention = (ConvQueryAttention if use_ds_conv else Attention)(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=False,
                dropout=dropout,
                position=RotaryPositions() if use_rotary else None,
                kernel=partial(FusedAttention, dropout),
            )
            act = "geglu" if use_glu else "gelu"
            return Block(dim, attention, FeedForward(dim, mlp_dim, dropout=dropout, act=act))

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.fc_norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens, the class token first; the norm follows the pooling."""
        tokens = self.embed(images)
        inputs = self.block_inputs(self.grid.fit(images.shape[2:]))
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return tokens

    def block_inputs(self, grid: Sequence[int], ids_keep: Int[Tensor, "b k"] | None = None) -> BlockInputs:
        """Return the extra inputs of each block: the grid, and rotations."""
        rotation = None if self.rotary is None else self.rotary(grid, 1, ids_keep)
        return BlockInputs(tuple(grid), 1, ids_keep, rotation=rotation)


class ImageRotary(ComputedBuffers):
    """Rotations by positions from -1 to 1 along both axes of the image, rows first.

    Args:
        dim_head: head dimension, at least 4; a quarter of the channels, in pairs, for each axis.
        max_freq: twice the highest frequency, in half turns from the middle of the image to its edge.

    Raises:
        ValueError: if heads have no pair of channels for each axis.
    """

    frequency: Tensor

    def __init__(self, dim_head: int, max_freq: float) -> None:
        super().__init__()
        if dim_head < 4:
            raise ValueError(f"rotary positions need a head dimension of at least 4, got {dim_head}")
        self.count = dim_head // 4
        self.max_freq = max_freq
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the frequencies of the pairs of an axis."""
        return {"frequency": torch.linspace(1, self.max_freq / 2, self.count) * pi}

    @fx_leaf
    def forward(
        self, grid: Sequence[int], prefix: int, ids_keep: Int[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "*b m f 2"]:
        """Return the rotation of each token, which all heads share; prefix tokens are not rotated."""
        rows, columns = (
            torch.linspace(-1, 1, extent, device=self.frequency.device)[:, None] * self.frequency
            for extent in grid
        )
        y = rows[:, None].expand(-1, grid[1], -1)
        x = columns[None].expand(grid[0], -1, -1)
        angles = F.pad(torch.cat([y, x], dim=-1).flatten(0, 1), (0, 0, prefix, 0))
        rotation = turns(angles)
        return rotation if ids_keep is None else rotation[token_ids(ids_keep, prefix)][:, None]


class ConvQueryAttention(Attention):
    """Attention whose queries come from a depthwise, then a pointwise convolution of the patches."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, **options: object) -> None:
        super().__init__(dim, heads=heads, dim_head=dim_head, **options)  # type: ignore[arg-type]
        inner = heads * dim_head
        del self.to_qkv
        self.conv = nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim, bias=False)
        self.to_q = nn.Linear(dim, inner, bias=False)
        # The class token has no neighbours.
        self.class_to_q = nn.Identity() if dim == inner else nn.Linear(dim, inner)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        init_xavier(self.to_q)
        init_xavier(self.to_kv, parts=2)

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens.

        Args:
            inputs: the grid of the patches, and rotations.

        Raises:
            ValueError: if there is no grid, or patches of it are missing.
        """
        if inputs.grid is None or inputs.ids_keep is not None:
            raise ValueError("convolutions of queries need the grid of the patches, and all of them")
        patches = x[:, 1:].mT.unflatten(2, inputs.grid)
        q = torch.cat([self.class_to_q(x[:, :1]), self.to_q(self.conv(patches).flatten(2).mT)], dim=1)
        k, v = self.to_kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.merge(self.attend(split_heads(q, self.heads), k, v, inputs))
