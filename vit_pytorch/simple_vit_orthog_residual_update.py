"""Revisiting Residual Connections: Orthogonal Updates for Stable and Efficient Deep Networks.

G. Oh, W. Cho, S. Kim, S. Choi, Y. Yu 2025, arXiv:2505.11881.

Of what a branch computes, only the part that is orthogonal to its input is added to that, so that a layer
turns tokens instead of stretching them; the model is the simplified ViT (arXiv:2205.01580).

Family: plain
Differs from the paper: the setting `learned`, which keeps shares of both parts, is of the public vit-pytorch
package; as there, patches are normed before and after their projection and attention has no biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import NO_INPUTS, BlockInputs
from vit_pytorch.layers.blocks import Block, layer, plain_blocks
from vit_pytorch.layers.options import Option, read_option
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair, warn_if_few
from vit_pytorch.layers.positions import SinCosPositions


@dataclass(frozen=True)
class OrthogonalUpdate(Option):
    """Option: how a branch is added to its input.

    Args:
        learned: add shares of the parallel and of the orthogonal part, which depend on the token, instead of
            the orthogonal part only.
        double_precision: split the two parts in double precision.
    """

    kind: ClassVar[str] = "orthogonal"
    learned: bool = False
    double_precision: bool = True


class OrthogonalSimpleViT(IsotropicModel):
    """The simplified Vision Transformer with orthogonal residual updates.

    Args:
        orthog_residual_update_kwargs: settings of `OrthogonalUpdate`.
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
        orthog_residual_update_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        grid = PatchGrid(pair(image_size), pair(patch_size))
        super().__init__(grid=grid, num_classes=num_classes, dim=dim, channels=channels, pool="mean")
        warn_if_few(grid)
        self.patch_embed = PatchEmbed(grid, channels, dim, norm_eps=1e-5)
        self.positions = SinCosPositions(grid.shape, dim)
        name, settings = "orthog_residual_update_kwargs", dict(orthog_residual_update_kwargs or {})
        update = read_option(name, {"kind": "orthogonal", **settings}, {"orthogonal": OrthogonalUpdate})
        self.blocks = plain_blocks(
            dim,
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            qkv_bias=False,
            out_bias=False,
            block=partial(OrthogonalBlock, update=update),
        )
        self.norm = nn.LayerNorm(dim)
        self.reset_classifier(num_classes)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return all tokens after the final norm."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class OrthogonalBlock(Block):
    """A block that adds the orthogonal parts of its branches (equation 4).

    Args:
        update: how they are added.
    """

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        feedforward: nn.Module,
        *,
        update: OrthogonalUpdate,
        **options: Any,
    ) -> None:
        super().__init__(dim, attention, feedforward, **options)
        self.update1 = OrthogonalSum(dim, update)
        self.update2 = OrthogonalSum(dim, update)

    @layer
    def forward(self, x: Float[Tensor, "b n d"], inputs: BlockInputs = NO_INPUTS) -> Float[Tensor, "b n d"]:
        """Transform tokens."""
        x = x + self.drop_path(self.update1(self.attention(self.norm1(x), inputs), x))
        return x + self.drop_path(self.update2(self.feedforward(self.norm2(x)), x))


class OrthogonalSum(nn.Module):
    """What of a branch's output is added to its input: `f - x (f x) / (x x)`."""

    def __init__(self, dim: int, update: OrthogonalUpdate) -> None:
        super().__init__()
        self.double_precision = update.double_precision
        self.to_shares = nn.Linear(dim, 2) if update.learned else None

    def forward(self, update: Float[Tensor, "b n d"], x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the orthogonal part of the update, or shares of both parts."""
        precise = torch.float64 if self.double_precision else x.dtype
        f, direction = update.to(precise), x.to(precise)
        # A zero vector has no direction: all of the update is orthogonal then.
        length = direction.square().sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        parallel = direction * ((f * direction).sum(dim=-1, keepdim=True) / length)
        orthogonal = (f - parallel).to(update.dtype)
        if self.to_shares is None:
            return orthogonal
        kept, turned = self.to_shares(update).sigmoid().split(1, dim=-1)
        return kept * parallel.to(update.dtype) + turned * orthogonal


SimpleViT = OrthogonalSimpleViT
