"""Linear layers by the faster of the libraries that PyTorch has on a processor."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CPUINFO = Path("/proc/cpuinfo")
# PyTorch leaves products in fp32 to MKL, which takes twice as long as oneDNN on AMD's processors, and offers
# oneDNN for convolutions alone.
MKL_IS_SLOW = False
if CPUINFO.is_file() and torch.backends.mkldnn.is_available():
    with CPUINFO.open() as file:
        # Every core is listed; the first one tells.
        MKL_IS_SLOW = "AuthenticAMD" in file.read(1024)
# Below so many vectors the two differ little.
FEW = 64


def linear(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "e d"], bias: Float[Tensor, " e"] | None = None
) -> Float[Tensor, "*b e"]:
    """Compute what `F.linear` does, as a convolution of one cell where that is faster.

    That is so in fp32 on AMD's processors, outside of graphs that are traced.
    """
    if (
        MKL_IS_SLOW
        and not torch.compiler.is_compiling()
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() >= FEW * x.shape[-1]
        # Of other numbers of vectors, oneDNN's gradients take longer than MKL's.
        and (x.numel() // x.shape[-1] % 8 == 0 or not torch.is_grad_enabled())
        # Weights of other types, such as quantised ones, have products of their own.
        and type(weight) in (nn.Parameter, Tensor)
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    ):
        rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        found = F.conv2d(rows, weight[:, :, None, None], bias)
        return found.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer whose product is computed by `linear`."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        """Transform every vector by itself."""
        return linear(x, self.weight, self.bias)
