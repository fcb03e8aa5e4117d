"""Fitting a checkpoint's first layer to a model with other channels or another patch size."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fit_inputs(
    model: nn.Module, state: dict[str, Tensor]
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Bring convolutions that see the images to a model's channels and patch size; changes the state dict.

    Channels are changed from grey or RGB only. Patches are resized where they do not overlap.

    Args:
        model: what will take the weights.
        state: tensors by our names.

    Returns:
        For each weight that was changed, its shape and the model's.
    """
    adapted: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    channels = getattr(model, "channels", None)
    for name, module in model.named_modules():
        key = f"{name}.weight"
        if not isinstance(module, CONVOLUTIONS) or module.in_channels != channels or key not in state:
            continue
        old, want = state[key], tuple(module.weight.shape)
        if module.groups != 1 or old.ndim != len(want) or len(old) != want[0] or old.shape == want:
            continue
        new = old
        if old.shape[1] != channels and old.shape[1] in (1, 3):
            new = adapt_channels(new, channels)
        if new.shape[2:] != want[2:] and new.ndim > 3 and module.kernel_size == module.stride:
            new = resize_patches(new, want[-2:])
        if new.shape == want:
            state[key] = new
            adapted[key] = (tuple(old.shape), want)
    return adapted


def adapt_channels(weight: Float[Tensor, "d c *k"], channels: int) -> Float[Tensor, "d n *k"]:
    """Return a convolution of RGB or grey images for other channels, as timm does.

    For one channel, the weights of all are added up: a grey image then gives what it gave as RGB. For more,
    they are repeated in order (red, green, blue, red, …) and scaled by the old number over the new one, so
    that sums keep their size.

    Args:
        weight: the convolution's.
        channels: channels of the new images.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    places = torch.arange(channels, device=weight.device) % old
    return weight[:, places] * (old / channels)


def resize_patches(weight: Float[Tensor, "d c *t h w"], size: Sequence[int]) -> Float[Tensor, "d c *t h2 w2"]:
    """Return a patch embedding for another patch size (FlexiViT, arXiv:2212.08013, section 3.4).

    The new weights give, on patches that are resized bilinearly, what the old ones gave, or as nearly as
    possible where patches shrink: they are the old ones times the pseudoinverse of resizing.

    Args:
        weight: the embedding's, with height and width as its last two axes.
        size: height and width of the new patches.
    """
    old = weight.shape[-2:]
    if weight.is_meta:
        return weight.new_empty(*weight.shape[:-2], *size)
    basis = torch.eye(prod(old), dtype=torch.float64).unflatten(1, (1, *old))
    # a row for each pixel of the old patch: how it spreads over the new one
    resize = F.interpolate(basis, tuple(size), mode="bilinear", align_corners=False).flatten(1)
    flat = weight.detach().double().flatten(-2).cpu() @ torch.linalg.pinv(resize).mT
    return flat.unflatten(-1, tuple(size)).to(weight)
