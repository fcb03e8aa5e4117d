"""A switch: the product of linear layers by the faster of the libraries that PyTorch has on a processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.attention import jit_is_tracing

CPUINFO = Path("/proc/cpuinfo")
MKL_LINEAR = F.linear
# Below so many vectors the two libraries differ little.
MIN_VECTORS = 64


def mkl_is_slow() -> bool:
    """Return whether this is a processor of AMD, on which MKL's products in fp32 take twice as long as
    oneDNN's."""
    if not CPUINFO.is_file() or not torch.backends.mkldnn.is_available():
        return False
    with CPUINFO.open() as file:
        # Each core is listed; the first one tells.
        return "AuthenticAMD" in file.read(1024)


def use_onednn_linear(enable: bool = True) -> None:
    """Have oneDNN instead of MKL compute linear layers in fp32 on the processor, in this process.

    It replaces `torch.nn.functional.linear`, which every `nn.Linear` calls, so that layers stay what they
    are. PyTorch offers oneDNN's product in fp32 as a convolution only; outside of graphs that are traced, and
    for other types, devices and small products, nothing changes. It pays on processors of AMD (see
    `mkl_is_slow`).

    Args:
        enable: switch it on; False restores PyTorch's own function.
    """
    F.linear = onednn_linear if enable else MKL_LINEAR


@contextmanager
def faster_linear() -> Iterator[None]:
    """Context manager: use the faster library for this processor (see `use_onednn_linear`)."""
    before = F.linear
    use_onednn_linear(mkl_is_slow())
    try:
        yield
    finally:
        F.linear = before


def onednn_linear(
    input: Float[Tensor, "*b d"], weight: Float[Tensor, "e d"], bias: Float[Tensor, " e"] | None = None
) -> Float[Tensor, "*b e"]:
    """Compute `F.linear` as a convolution of one cell, where that is faster."""
    if (
        # Weights of other types, such as quantised ones, have products of their own; so do proxies of
        # tracers.
        type(weight) in (nn.Parameter, Tensor)
        and type(input) is Tensor
        and not torch.compiler.is_compiling()
        and not jit_is_tracing()
        and input.dtype == weight.dtype == torch.float32
        and input.device.type == "cpu"
        and input.numel() >= MIN_VECTORS * input.shape[-1]
        # Of other numbers of vectors, oneDNN's gradients take longer than MKL's.
        and (input.numel() // input.shape[-1] % 8 == 0 or not torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cpu")
    ):
        rows = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)
        output = F.conv2d(rows, weight[:, :, None, None], bias)
        return output.permute(0, 2, 3, 1).reshape(*input.shape[:-1], weight.shape[0])
    return MKL_LINEAR(input, weight, bias)
