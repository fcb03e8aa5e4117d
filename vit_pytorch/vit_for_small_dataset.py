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
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic_v01 import IsotropicModel
from vit_pytorch.layers_v01.attention import Attention, FusedAttention
from vit_pytorch.layers_v01.blocks import Block, Encoder, FeedForward, Residual, make_tail
from vit_pytorch.layers_v01.init import init_linears
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers_v01.positions import LearnedPositions
from vit_pytorch.layers_v01.tokens import PrefixTokens


class SPT(nn.Module):
    """Shifted patch tokenization (equations 1 to 4; figure 3).

    The array and its copies moved by half a patch along the four diagonals, zeros moving in, are cut
    together; each patch of all five is normed and projected to a token.

    Args:
        dim: width of a token.
        patch_size: size of a patch, one number or (height, width); at least 2.
        channels: channels of the input.

    Raises:
        ValueError: where half a patch is less than a pixel.
    """

    def __init__(self, dim: int, patch_size: int | Sequence[int], channels: int = 3) -> None:
        super().__init__()
        self.patch = pair(patch_size)
        if min(self.patch) < 2:
            raise ValueError(f"a patch that is shifted by its half is at least 2, got {self.patch}")
        width = 5 * channels * prod(self.patch)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed images or maps; the tokens come in row-major order of the grid.

        Raises:
            ValueError: where the patch does not divide the size.
        """
        height, width = x.shape[2:]
        grid = PatchGrid((height, width), self.patch)
        return self.linear(self.norm(grid.patchify(self.with_shifts(x))))

    def with_shifts(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """Stack the channels with those shifted right and down, left and down, right and up, left and up."""
        height, width = x.shape[2:]
        down, right = (extent // 2 for extent in self.patch)
        padded = F.pad(x, (right, right, down, down))
        shifted = [
            padded[:, :, top : top + height, left : left + width]
            for top in (0, 2 * down)
            for left in (0, 2 * right)
        ]
        return torch.cat([x, *shifted], dim=1)


class Locality(nn.Module):
    """The kernel of locality self-attention (equations 5 to 7): a temperature for each head, no diagonal.

    Args:
        heads: number of heads.
        dim_head: width of a head; the temperatures start where ViT's scale is, at 1 / sqrt(dim_head).
    """

    def __init__(self, heads: int, dim_head: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.full((heads,), dim_head**-0.5))
        self.attend = FusedAttention(scale=1.0)

    def forward(
        self, q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h n e"], v: Float[Tensor, "b h n e"]
    ) -> Float[Tensor, "b h n e"]:
        """Attend from every token to all others."""
        others = ~torch.eye(q.shape[2], dtype=torch.bool, device=q.device)
        return self.attend(q * self.temperature[:, None, None], k, v, others)


class SLViT(IsotropicModel):
    """The Vision Transformer with shifted patch tokenization and locality self-attention.

    Args:
        image_size: the largest input, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width); divides the image size.
        num_classes: number of logits; 0 gives the pooled embedding.
        dim: width of a token.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_dim: width inside the feed-forward.
        dropout: dropout after the linear layers of the encoder, in [0, 1).
        emb_dropout: dropout on the embedded tokens, in [0, 1).
        pool: "cls" classifies the class token, "mean" the mean of the patches.
        channels: channels of the input.
        dim_head: width of a head.
        stem: "shifted" for shifted patch tokenization, "linear" for ViT's patches.
        attention: "locality" for locality self-attention, "plain" for ViT's.
        drop_path: probability to drop a residual branch, the same in every block, in [0, 1).

    Raises:
        ValueError: where sizes do not divide, or an option is unknown.
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
        attends: dict[str, Callable[[], nn.Module]] = {
            "locality": partial(Locality, heads, dim_head),
            "plain": FusedAttention,
        }
        check_choice("pool", pool, ("cls", "mean"))
        check_choice("stem", stem, stems)
        check_choice("attention", attention, attends)
        norm = partial(nn.LayerNorm, dim, eps=1e-5)

        self.patch_embed = stems[stem]()
        self.prefix = PrefixTokens(dim)
        self.positions = LearnedPositions(grid.shape, dim, prefix=1)
        self.dropout = nn.Dropout(emb_dropout)

        def block(layer: int) -> Block:
            mix = Attention(
                dim,
                heads=heads,
                dim_head=dim_head,
                qkv_bias=False,
                dropout=dropout,
                attend=attends[attention],
            )
            feedforward = FeedForward(dim, mlp_dim, dropout=dropout)
            tail = partial(make_tail, dim, drop_path=drop_path)
            return Block(Residual(mix, norm(), tail()), Residual(feedforward, norm(), tail()))

        self.encoder = Encoder(block, depth=depth)
        self.fc_norm = norm()
        init_linears(self, nn.init.xavier_normal_)
        for parameter in (*self.prefix.parameters(), *self.positions.parameters()):
            nn.init.normal_(parameter)
        self.reset_classifier(num_classes)


ViT = SLViT
