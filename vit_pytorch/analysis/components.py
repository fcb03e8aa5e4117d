"""Principal components, and pictures of tokens by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.wrapper import eval_mode


@dataclass(frozen=True)
class Components:
    """Principal components, in float64.

    Args:
        mean: mean of the samples.
        axes: components of length 1, the strongest first, each with its largest entry positive.
        share: part of the variance that lies along each.
    """

    mean: Float[Tensor, " d"]
    axes: Float[Tensor, "k d"]
    share: Float[Tensor, " k"]

    def project(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Return the coordinates of samples along the components."""
        return (x.double() - self.mean) @ self.axes.mT


def principal_components(x: Float[Tensor, "n d"], count: int) -> Components:
    """Compute the principal components of samples.

    Args:
        x: samples.
        count: number of components.

    Raises:
        ValueError: where there are fewer.
    """
    if not 1 <= count <= min(x.shape):
        raise ValueError(
            f"{x.shape[0]} samples of {x.shape[1]} values have 1 to {min(x.shape)} components, got {count}"
        )
    x = x.detach().double()
    mean = x.mean(dim=0)
    _, singular, axes = torch.linalg.svd(x - mean, full_matrices=False)
    variance = singular.square()
    share = variance / variance.sum().clamp(min=torch.finfo(x.dtype).tiny)
    axes = axes[:count]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return Components(mean, axes * largest.sign(), share[:count])


@dataclass(frozen=True)
class TokenColours:
    """Tokens as colours.

    Args:
        colours: red, green and blue in [0, 1] of every patch; black where it is background.
        foreground: which patches are not background.
    """

    colours: Float[Tensor, "b *grid 3"]
    foreground: Bool[Tensor, " b *grid"]


@torch.no_grad()
def token_colours(
    model: VisionModel,
    images: Float[Tensor, "b c *size"],
    *,
    layer: int = -1,
    norm: bool = True,
    foreground: str = "all",
    threshold: float = 0.0,
) -> TokenColours:
    """Show what the tokens of some images have in common (DINOv2, arXiv:2304.07193, section 7.5, figure 1).

    The first three principal components of the tokens of all images together are red, green and blue.

    Args:
        model: any model that gives maps of features between its layers.
        images: as the model takes them; parts that are alike in several images get one colour.
        layer: index of the intermediate feature; negative from the end.
        norm: whether the model's final norm is applied.
        foreground: "all" keeps all patches. "above" and "below" keep those whose first component lies on that
            side of the threshold, and compute the colours from these alone, as the paper does to leave
            out the background; which side that is, the sign of a component cannot tell.
        threshold: of the first component, in its standard deviations; its mean is 0.

    Raises:
        ValueError: where there is no such layer, or too few patches are kept for three components.
    """
    with eval_mode(model):
        maps: Any = model.forward_intermediates(images, [layer], norm=norm, intermediates_only=True)
    return colours_of_tokens(maps[0].movedim(1, -1), foreground=foreground, threshold=threshold)


def colours_of_tokens(
    tokens: Float[Tensor, "b *grid d"], *, foreground: str = "all", threshold: float = 0.0
) -> TokenColours:
    """Compute the colours of tokens on a grid (see `token_colours`).

    Raises:
        ValueError: where too few patches are kept for three components.
    """
    check_choice("foreground", foreground, ("all", "above", "below"))
    kept = torch.ones(tokens.shape[:-1], dtype=torch.bool, device=tokens.device)
    if foreground != "all":
        first = principal_components(tokens.flatten(0, -2), 1).project(tokens)[..., 0]
        first = first / first.std().clamp(min=torch.finfo(first.dtype).tiny)
        kept = first > threshold if foreground == "above" else first < threshold
    chosen = tokens[kept]
    if len(chosen) < 3:
        raise ValueError(
            f"three components need at least 3 patches, got {len(chosen)} {foreground} the threshold "
            f"{threshold}"
        )
    values = principal_components(chosen, 3).project(chosen)
    low, high = values.amin(dim=0), values.amax(dim=0)
    values = (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    colours = torch.zeros(*tokens.shape[:-1], 3, device=tokens.device)
    colours[kept] = values.to(colours.dtype)
    return TokenColours(colours, kept)
