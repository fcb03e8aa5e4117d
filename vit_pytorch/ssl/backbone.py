"""What methods that learn without labels ask of a model, and how a model of timm gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import Ids
from vit_pytorch.layers.patches import MaskFn, PatchGrid


@runtime_checkable
class Backbone(Protocol):
    """A model that is one sequence of tokens, prefix tokens in front of the patches.

    Every `IsotropicModel` whose class token is in the sequence from the start is one; `as_backbone` makes one
    of a plain ViT of timm.
    """

    grid: PatchGrid
    channels: int
    num_features: int
    num_prefix_tokens: int

    def patchify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch of pixels to a vector (row, column, channel)."""

    def embed(
        self, images: Float[Tensor, "b c h w"], *, mask_fn: MaskFn | None = None, add_positions: bool = True
    ) -> Float[Tensor, "b n d"]:
        """Turn images into tokens; `mask_fn` acts on the patches before they are given their places."""

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b n d"]:
        """Run the encoder and its final norm on tokens; `ids_keep` are the positions of the patches among
        them."""

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Compute the tokens after the final norm."""


class TimmBackbone(nn.Module):
    """A plain ViT of timm as a `Backbone`; the model is used as it is, not copied.

    Raises:
        ValueError: where it is no plain ViT.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        needed = ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm", "num_prefix_tokens")
        missing = [name for name in needed if not hasattr(model, name)]
        if missing:
            raise ValueError(
                f"expected a plain ViT of timm, got a {type(model).__name__} without {missing[0]}"
            )
        self.model = model
        self.grid = PatchGrid(tuple(model.patch_embed.img_size), tuple(model.patch_embed.patch_size))
        self.channels = model.patch_embed.proj.in_channels
        self.num_features = model.num_features
        self.num_prefix_tokens = model.num_prefix_tokens

    def patchify(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n p"]:
        """Flatten each patch of pixels to a vector (row, column, channel)."""
        return self.grid.patchify(images)

    def embed(
        self, images: Float[Tensor, "b c h w"], *, mask_fn: MaskFn | None = None, add_positions: bool = True
    ) -> Float[Tensor, "b n d"]:
        """Turn images into tokens; see `Backbone`."""
        x = self.model.patch_embed(images)
        if mask_fn is not None:
            x = mask_fn(x)
        if add_positions:
            return self.model.norm_pre(self.model._pos_embed(x))
        prefix = [token for token in (self.model.cls_token, self.model.reg_token) if token is not None]
        x = torch.cat([*(token.expand(len(x), -1, -1) for token in prefix), x], dim=1)
        return self.model.norm_pre(x)

    def encode(
        self, tokens: Float[Tensor, "b n d"], grid: Sequence[int] | None = None, ids_keep: Ids | None = None
    ) -> Float[Tensor, "b n d"]:
        """Run the blocks and the final norm."""
        return self.model.norm(self.model.blocks(tokens))

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Compute the tokens after the final norm."""
        return self.encode(self.embed(images))


def as_backbone(model: nn.Module) -> Backbone:
    """Return a model as a learning method wants it: itself, or a plain ViT of timm in an adapter.

    Raises:
        ValueError: where it is neither.
    """
    if isinstance(model, Backbone):
        return model
    if type(model).__module__.startswith("timm."):
        return TimmBackbone(model)
    raise ValueError(
        "expected a model of one sequence of tokens with embed, encode and patchify, such as ViT; "
        f"got {type(model).__name__}"
    )
