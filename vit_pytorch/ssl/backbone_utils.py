"""What learning methods have to know of a model that may be this package's or timm's."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, lcm
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


def channels_of(net: nn.Module) -> int:
    """Return the channels of a model's input.

    Raises:
        ValueError: where the model does not say.
    """
    for name in ("channels", "in_chans"):
        if isinstance(getattr(net, name, None), int):
            return int(getattr(net, name))
    embed = getattr(net, "patch_embed", None)
    if isinstance(getattr(embed, "proj", None), nn.Conv2d):
        return int(embed.proj.in_channels)  # type: ignore[union-attr]
    raise ValueError(f"{type(net).__name__} does not say how many channels it takes; it has no `channels`")


def dummy_input(net: nn.Module, size: Sequence[int]) -> Float[Tensor, "1 c h w"]:
    """Return a batch of one black image of a size, for a model."""
    return next(net.parameters()).new_zeros(1, channels_of(net), *size)


def normalisation_of(net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of a model's input.

    One half each, where the model does not tell them for the channels that it takes.
    """
    cfg: Any = getattr(net, "default_cfg", None)
    told = cfg if isinstance(cfg, dict) else {}
    channels = channels_of(net)
    found = [tuple(told.get(name) or (0.5,)) for name in ("mean", "std")]
    if any(len(values) not in (1, channels) for values in found):
        return (0.5,), (0.5,)
    return found[0], found[1]


def local_size(net: nn.Module, size: tuple[int, int], part: float = 3 / 7) -> tuple[int, int]:
    """Return the size of a crop that a model takes, close to a part of a size.

    Args:
        net: says its patch, or its stride, and the least size.
        part: of the height and of the width; 96 of 224 pixels unless told.
    """
    info: Any = getattr(net, "feature_info", [])
    stride = max((entry["reduction"] for entry in info), default=1)
    patch = getattr(getattr(net, "grid", None), "patch", (stride, stride))
    multiple: Any = getattr(net, "size_multiple", (1, 1))
    least: Any = getattr(net, "min_size", (1, 1))
    steps = [lcm(int(p), int(m)) for p, m in zip(patch, multiple, strict=True)]
    height, width = (
        step * max(round(part * full / step), ceil(low / step), 1)
        for step, full, low in zip(steps, size, least, strict=True)
    )
    return height, width
