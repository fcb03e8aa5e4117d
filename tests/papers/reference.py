"""What parity tests share: random weights that hide nothing, and the comparison."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.tolerances import PARITY

__all__ = ["TOLERANCE", "difference", "images", "randomise"]

TOLERANCE = PARITY


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and statistic so that none is trivially zero or one; put the model in eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = name.endswith(("norm.weight", "lambda1")) or "gamma" in name
            norm = parameter.ndim == 1 and name.endswith("weight")
            if scale or norm:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.1, generator=generator)
            elif parameter.ndim == 3 or "pos" in name or "token" in name:
                parameter.normal_(0, 0.2, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def images(*size: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Draw pictures of three channels."""
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Give the largest difference, of outputs that are not trivial."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.05
    return (ours - theirs).abs().max().item()
