"""Vision Transformer for Small-Size Datasets.

S. H. Lee, S. Lee, B. C. Song 2021, arXiv:2112.13492.

Brings locality to the ViT, so that it learns from scratch on small data: each patch is seen together with
four copies of the image shifted by half a patch (SPT), and attention has a learned temperature for each head
and leaves out what a token would say to itself (LSA).

Family: plain
Differs from the paper: nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.attention import Attention, FusedAttention, Queries
from vit_pytorch.layers.blocks import Block, FeedForward, fx_leaf, is_tracing
from vit_pytorch.layers.init import init_linears
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, PrefixTokens, pair
from vit_pytorch.layers.positions import LearnedPositions


class SPT(nn.Module):
    """Shifted patch tokenization (equations 1 to 4; figure 3).

    The array and its copies moved by half a patch along the four diagonals, zeros moving in, are cut
    together; each patch of all five is normed and projected to a token.

    Args:
        patch_size: size of a patch, one number or (height, width); at least 2.

    Raises:
        ValueError: if half a patch is less than a pixel.
    """

    @checks_arguments
    def __init__(self, dim: int, patch_size: int | Sequence[int], channels: int = 3) -> None:
        super().__init__()
        self.patch = pair(patch_size)
        if min(self.patch) < 2:
            raise ValueError(f"patch_size must be at least 2, got {self.patch}")
        width = 5 * channels * prod(self.patch)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images or maps; the tokens come in row-major order of the grid.

        Raises:
            ValueError: if the patch does not divide the size.
        """
        if not is_tracing(x):
            # Refuses a size that the patch does not divide.
            PatchGrid(tuple(x.shape[2:]), self.patch)
        rows = self.with_shifts(x).unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0]))
        patches = rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return self.linear(self.norm(patches))

    def with_shifts(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Stack the channels with those shifted right and down, left and down, right and up, left and up."""
        down, right = self.patch[0] // 2, self.patch[1] // 2
        # Padding by less than nothing cuts: what moves in on one side leaves on the other.
        shifts = [F.pad(x, (dx, -dx, dy, -dy)) for dy in (down, -down) for dx in (right, -right)]
        return torch.cat([x, *shifts], dim=1)


class Temperature(nn.Module):
    """Multiply the queries of each head by a learned factor."""

    def __init__(self, heads: int, init: float) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((heads,), float(init)))

    def forward(self, q: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        """Scale the queries, and with them the scores."""
        return q * self.factors[:, None, None]


class Locality(nn.Module):
    """The kernel of locality self-attention (equations 5 to 7): a temperature for each head, no diagonal.

    Args:
        dim_head: head dimension; the temperatures start at ViT's scale, 1 / sqrt(dim_head).
    """

    def __init__(self, heads: int, dim_head: int) -> None:
        super().__init__()
        self.temperature = Temperature(heads, dim_head**-0.5)
        self.kernel = FusedAttention(scale=1.0)

    def forward(self, q: Queries, k: Queries, v: Queries, mask: None = None) -> Queries:
        """Attend from each token to all others."""
        return self.kernel(self.temperature(q), k, v, others(q))


@fx_leaf
def others(q: Float[Tensor, "b h n e"]) -> Bool[Tensor, "n n"]:
    """Return the mask of what each token sees: all tokens but itself."""
    return ~torch.eye(q.shape[2], dtype=torch.bool, device=q.device)


class SLViT(IsotropicModel):
    """The Vision Transformer with shifted patch tokenization and locality self-attention.

    Args:
        stem: "shifted" for shifted patch tokenization, "linear" for ViT's patches.
        attention: "locality" for locality self-attention, "plain" for ViT's.
        drop_path: probability of dropping a residual branch, the same in all blocks, in [0, 1).
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
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        stem: Literal["shifted", "linear"] = "shifted",
        attention: Literal["locality", "plain"] = "locality",
        drop_path: float = 0.0,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool=pool)
        stems: dict[str, Callable[[], nn.Module]] = {
            "shifted": partial(SPT, dim, grid.patch, channels),
            "linear": partial(PatchEmbed, grid, channels, dim),
        }
        kernels: dict[str, Callable[[], nn.Module]] = {
            "locality": partial(Locality, heads, dim_head),
            "plain": FusedAttention,
        }
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("stem", stem, stems)
        check_choice("attention", attention, kernels)
        norm = partial(nn.LayerNorm, eps=1e-5)

        self.patch_embed = stems[stem]()
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                Attention(
                    dim,
                    heads=heads,
                    dim_head=dim_head,
                    qkv_bias=False,
                    dropout=dropout,
                    kernel=kernels[attention],
                ),
                FeedForward(dim, mlp_dim, dropout=dropout),
                norm=norm,
                drop_path=drop_path,
            )
            for _ in range(depth)
        )
        self.fc_norm = norm(dim)
        init_linears(self, nn.init.xavier_normal_)
        for parameter in (*self.prefix.parameters(), *self.positions.parameters()):
            nn.init.normal_(parameter)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens, the class token first; the final norm acts on the pooled vector."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


ViT = SLViT
