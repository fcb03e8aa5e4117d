"""Which patches are hidden from a model, and how they are hidden.

Randomness comes from torch's generators: the global one, or one that is passed in.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import ceil, prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.patches import PatchEmbed
from vit_pytorch.ssl.backbone import Backbone, as_backbone


def as_maskable(model: nn.Module) -> Backbone:
    """Return a model as learning by masking wants it: with all prefix tokens in the sequence from the start.

    Warns where patches are not embedded one by one: overlapping ones, or convolutions, show other tokens the
    pixels that are hidden.

    Raises:
        ValueError: where it is no model of one sequence, its class token joins late, or its features are of
            another width than its tokens.
    """
    backbone = as_backbone(model)
    early = getattr(backbone, "num_encoder_prefix_tokens", backbone.num_prefix_tokens)
    if early != backbone.num_prefix_tokens:
        raise ValueError(
            "learning by masking needs all prefix tokens in front of the encoder; "
            f"{type(model).__name__} has {backbone.num_prefix_tokens}, of which {early} are there"
        )
    width = next((info["num_chs"] for info in getattr(backbone, "feature_info", ())), backbone.num_features)
    if width != backbone.num_features:
        raise ValueError(
            "learning by masking needs a model whose features are as wide as tokens, "
            f"got {backbone.num_features} and {width}"
        )
    stem = getattr(backbone, "patch_embed", None)
    if stem is not None and not isinstance(stem, PatchEmbed):
        warnings.warn(
            f"{type(model).__name__} embeds patches by {type(stem).__name__}, "
            "through which hidden pixels may reach other tokens",
            stacklevel=3,
        )
    return backbone


def check_ratio(name: str, ratio: float) -> None:
    """Hold a share of the patches against its range.

    Raises:
        ValueError: where it is not between 0 and 1.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"{name} is between 0 and 1, got {ratio}")


def count_visible(patches: int, ratio: float) -> int:
    """Return the number of patches that stay where a share of them, rounded up, is hidden.

    Raises:
        ValueError: where none would stay, or none be hidden.
    """
    visible = int(patches * (1 - ratio))
    if not 0 < visible < patches:
        raise ValueError(
            f"masking {ratio} of {patches} patches leaves {visible} visible; "
            "some must be visible and some hidden"
        )
    return visible


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Hold what is passed in against its shape.

    Raises:
        ValueError: naming the shape wanted and the one given.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(
            f"{name} has a value for each patch, shape {tuple(shape)}; got {tuple(tensor.shape)}"
        )


def draw_noise(
    batch: int, cells: int, *, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> Float[Tensor, "b n"]:
    """Draw uniform numbers in [0, 1), of which the order decides what is hidden.

    Args:
        cells: patches of an image.
        device: where they are wanted.
        generator: where they come from, on any device; the global generator of `device` unless told.
    """
    source = device if generator is None else generator.device
    return torch.rand(batch, cells, device=source, generator=generator).to(device)


def draw_mask(
    batch: int,
    grid: Sequence[int],
    ratio: float,
    *,
    unit: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "b n"]:
    """Choose patches at random: in every image the same share, rounded up to whole units.

    Args:
        ratio: share of the units that is chosen, in (0, 1).
        unit: patches along each axis that are chosen together; single patches unless told.
        device: where the mask is wanted.

    Returns:
        True where a patch is chosen, in row-major order of the grid.

    Raises:
        ValueError: where units do not fill the grid.
    """
    unit = [1] * len(grid) if unit is None else unit
    if any(extent % side for extent, side in zip(grid, unit, strict=True)):
        raise ValueError(f"a grid of {tuple(grid)} patches is not cut into units of {tuple(unit)}")
    coarse = [extent // side for extent, side in zip(grid, unit, strict=True)]
    noise = draw_noise(batch, prod(coarse), device=device, generator=generator)
    chosen = noise.argsort(dim=1).argsort(dim=1) < ceil(prod(coarse) * ratio)
    mask = chosen.unflatten(1, coarse)
    for axis, side in enumerate(unit, start=1):
        mask = mask.repeat_interleave(side, dim=axis)
    return mask.flatten(1)


def cover(
    tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"], token: Float[Tensor, "1 1 d"]
) -> Float[Tensor, "b n d"]:
    """Put one token in the place of every patch that a mask names."""
    return torch.where(mask[..., None], token.to(tokens.dtype), tokens)


def gather_tokens(tokens: Float[Tensor, "b n d"], places: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    """Return each image's tokens at its own places."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def patch_tokens(tokens: Float[Tensor, "b n d"], prefix: int, patches: int) -> Float[Tensor, "b m d"]:
    """Return the patches of a sequence, without the prefix tokens.

    Raises:
        ValueError: where the sequence has another number of them: tokens that are no patches, or that the
            model merges or drops, cannot be held against pixels.
    """
    if tokens.shape[1] != prefix + patches:
        raise ValueError(
            "learning by masking needs a token for each patch: "
            f"{patches} behind {prefix} prefix tokens, got {tokens.shape[1]}"
        )
    return tokens[:, prefix:]
