"""How weights start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor, nn

# Standard deviation of learned positions and tokens: half that of embedded patches whose pixels have unit
# variance. With the 0.02 of the papers' long schedules, attention is blind to places for hundreds of steps
# (docs/measured/learning.md).
EMBEDDING_STD = 0.5


def init_xavier(linear: nn.Linear, parts: int | Sequence[int] = 1) -> None:
    """Start a linear layer by Glorot and Bengio's uniform distribution, its bias at zero (ViT's own code).

    Args:
        parts: how many layers are fused in it along the output, each of which counts by itself; or the
            outputs of each of them.
    """
    sizes = linear.out_features // parts if isinstance(parts, int) else list(parts)
    for weight in linear.weight.data.split(sizes):
        nn.init.xavier_uniform_(weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def init_embeddings(*tables: Tensor, std: float = EMBEDDING_STD) -> None:
    """Start learned positions, or tokens, from a normal distribution around zero.

    Args:
        tables: what learns.
        std: standard deviation.
    """
    for table in tables:
        nn.init.normal_(table, std=std)


def init_linears(
    model: nn.Module,
    start: Callable[[Tensor], object],
    kinds: tuple[type[nn.Linear | nn.Conv2d], ...] = (nn.Linear,),
) -> None:
    """Start all linear layers of a model alike, their biases at zero.

    Args:
        start: fills a weight.
        kinds: the classes of layers that are meant; convolutions of images may be among them.
    """
    for module in model.modules():
        if isinstance(module, kinds):
            start(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_convs(model: nn.Module) -> None:
    """Start all convolutions of images with variance 2 / fan-out, of a group's channels; biases at zero.

    He et al. 2015, arXiv:1502.01852, equation 14, as codes after EfficientNet's have it.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels // module.groups * prod(module.kernel_size)
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
