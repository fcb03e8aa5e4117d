"""How weights start."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def init_xavier(linear: nn.Linear, parts: int = 1) -> None:
    """Start a linear layer by Glorot and Bengio's uniform distribution, its bias at zero (ViT's own code).

    Args:
        linear: the layer.
        parts: how many layers are fused in it along the output, each of which counts by itself.
    """
    for weight in linear.weight.data.chunk(parts):
        nn.init.xavier_uniform_(weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_linears(model: nn.Module, start: Callable[[Tensor], object]) -> None:
    """Start all linear layers of a model alike, their biases at zero.

    Args:
        model: whose layers.
        start: fills a weight.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            start(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
