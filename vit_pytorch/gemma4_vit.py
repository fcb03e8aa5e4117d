"""Gemma 4 Technical Report: the vision tower.

Gemma Team 2026, arXiv:2607.02770.

A ViT for images of any size, without a class token: embeddings of column and row are added to the patches,
queries and keys are rotated by both, queries, keys and values are normed, and each branch of a block has a
norm before it and one behind it.

Family: plain
Differs from the paper: the tower alone, and behind it timm's classifier of the mean of the patches; what
pools 3 x 3 patches for the language model is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import (
    NO_INPUTS,
    BlockInputs,
    FusedAttention,
    Queries,
    merge_heads,
    split_heads,
)
from vit_pytorch.layers.blocks import Block, drop_path_rate, fx_leaf, is_tracing, layer
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.norm import RMSNorm
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import FactorisedPositions
from vit_pytorch.layers.rotary import AxialRotary, rotate

# Beyond what half precision holds nothing has to be limited.
NO_LIMIT = torch.finfo(torch.float16).max


class Gemma4ViT(IsotropicModel):
    """The vision tower of Gemma 4, for images with values from 0 to 1 and sides that the patch divides.

    Args:
        image_size: the customary input; others are taken, too.
        positions: the largest number of rows, and of columns, of patches.
        clipped: the inputs and the outputs of linear layers in blocks are limited, as published weights say.

    Raises:
        ValueError: if `dim_head` is no multiple of 4, or the image has more rows or columns than `positions`.
    """

    positions: FactorisedPositions
    # There are patches alone.
    num_prefix_tokens = 0
    undecayed = IsotropicModel.undecayed + r"|^positions\."

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
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        dim_head: int = 64,
        positions: int = 10_240,
        clipped: bool = False,
        attn_dropout: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
    ) -> None:
        if dim_head % 4:
            raise ValueError(
                f"rotations along two axes need a dim_head that is a multiple of 4, got {dim_head}"
            )
        grid = PatchGrid(pair(image_size), pair(patch_size), dynamic=True)
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        self.patch_embed = CenteredPatchEmbed(grid, channels, dim, bias=False)
        self.positions = FactorisedPositions((positions, positions), dim)
        self.rotary = AxialRotary(grid.shape, dim_head)
        self.dropout = nn.Dropout(emb_dropout)
        norm = partial(RMSNorm, eps=norm_eps)
        linear = partial(ClippedLinear, clipped=clipped)
        self.blocks = nn.ModuleList(
            SandwichNormBlock(
                dim,
                NormedAttention(
                    dim, heads, dim_head, norm=norm, linear=linear, dropout=dropout, attn_dropout=attn_dropout
                ),
                GatedMLP(dim, mlp_dim, linear=linear, dropout=dropout),
                norm=norm,
                drop_path=drop_path_rate(drop_path, index, depth),
            )
            for index in range(depth)
        )
        self.fc_norm = norm(dim, elementwise_affine=False)
        self.reset_classifier(num_classes)

    def check_images(self, images: Tensor) -> None:
        """Raise `ValueError` for images that the model does not take, or with more patches than positions."""
        super().check_images(images)
        if is_tracing(images):
            return
        grid, most = self.grid.fit(images.shape[2:]), self.positions.grid
        if grid[0] > most[0] or grid[1] > most[1]:
            raise ValueError(f"rows and columns of patches must be at most {most}, got {tuple(grid)}")

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the patches' tokens, which have no final norm."""
        self.check_images(images)
        grid = self.grid.fit(images.shape[2:])
        tokens = self.dropout(self.positions(self.patch_embed(images), grid=grid))
        inputs = self.block_inputs(grid)
        for block in self.blocks:
            tokens = block(tokens, inputs)
        return tokens

    def block_inputs(self, grid: Sequence[int], ids_keep: Tensor | None = None) -> BlockInputs:
        """Return the extra inputs of each block: rotations by the patches' columns and rows."""
        # Rotations are computed outside the graph of FX, which has those of the customary input.
        traced = any(isinstance(extent, Proxy) for extent in grid)
        rotation = self.rotary(self.grid.shape if traced else grid, 0, ids_keep)
        return BlockInputs(tuple(grid), 0, ids_keep, rotation=rotation)


class CenteredPatchEmbed(PatchEmbed):
    """Project patches whose values are brought from the range of 0 to 1 to that of -1 to 1."""

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b n d"]:
        """Embed images."""
        return super().forward(2 * (x - 0.5))


class SandwichNormBlock(Block):
    """A block with norms before and behind both branches."""

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        norm: Callable[[int], nn.Module],
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(dim, attention, feedforward, norm=norm, drop_path=drop_path)
        self.post_norm1 = norm(dim)
        self.post_norm2 = norm(dim)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens."""
        x = x + self.drop_path(self.post_norm1(self.attention(self.norm1(x), inputs)))
        return x + self.drop_path(self.post_norm2(self.feedforward(self.norm2(x))))


class NormedAttention(nn.Module):
    """Attention of normed queries, keys and values, whose scores are not scaled.

    Args:
        norm: builds a norm from the dimension that it acts on.
        linear: builds a projection from both dimensions.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        *,
        norm: Callable[..., nn.Module],
        linear: Callable[[int, int], nn.Module],
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = linear(dim, heads * dim_head)
        self.to_k = linear(dim, heads * dim_head)
        self.to_v = linear(dim, heads * dim_head)
        self.q_norm = norm(dim_head)
        self.k_norm = norm(dim_head)
        self.v_norm = norm(dim_head, elementwise_affine=False)
        self.kernel = FusedAttention(attn_dropout, scale=1.0)
        self.to_out = linear(heads * dim_head, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Attend from each token to all tokens of its sample."""
        q = self.q_norm(split_heads(self.to_q(x), self.heads))
        k = self.k_norm(split_heads(self.to_k(x), self.heads))
        v = self.v_norm(split_heads(self.to_v(x), self.heads))
        if inputs.rotation is not None:
            q, k = rotate_axes(q, inputs.rotation), rotate_axes(k, inputs.rotation)
        return self.dropout(self.to_out(merge_heads(self.kernel(q, k, v, inputs.mask))))


@fx_leaf
def rotate_axes(x: Queries, rotation: Float[Tensor, "*s n f 2"]) -> Queries:
    """Rotate the first half of the channels by the column and the second half by the row.

    In each of them a channel of the first half and one of the second are a pair.
    """
    parts = zip(x.chunk(2, dim=-1), rotation.chunk(2, dim=-2), strict=True)
    return torch.cat([rotate(part, turn, halves=True) for part, turn in parts], dim=-1)


class GatedMLP(nn.Module):
    """Two linear layers, the first one's outputs gated by GELU of another one's.

    Args:
        linear: builds a layer from both dimensions.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, linear: Callable[[int, int], nn.Module], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.to_gate = linear(dim, hidden_dim)
        self.to_hidden = linear(dim, hidden_dim)
        self.to_out = linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Transform each token on its own."""
        gate = F.gelu(self.to_gate(x), approximate="tanh")
        return self.dropout(self.to_out(gate * self.to_hidden(x)))


class ClippedLinear(nn.Module):
    """A linear layer without a bias, whose inputs and outputs may be limited.

    Args:
        clipped: limit both.
    """

    def __init__(self, dim: int, out_dim: int, *, clipped: bool) -> None:
        super().__init__()
        self.before = Clip() if clipped else nn.Identity()
        self.linear = nn.Linear(dim, out_dim, bias=False)
        self.after = Clip() if clipped else nn.Identity()
        init_xavier(self.linear)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Project the last axis."""
        return self.after(self.linear(self.before(x)))


class Clip(nn.Module):
    """Limit values to a range that weights bring with them; at the start, to that of half precision."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(-NO_LIMIT))
        self.register_buffer("high", torch.tensor(NO_LIMIT))

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Limit every element."""
        low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        # What `clamp`, `minimum` and `maximum` become in ONNX loses limits that several layers share.
        x = torch.where(x < low, low, x)
        return torch.where(x > high, high, x)
