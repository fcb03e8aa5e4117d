"""A pytest plugin that makes this machine round like another one: `python -m pytest -p tests.perturbed`.

Every result of a kernel that sums, or that computes a transcendental function, moves by up to one unit in its
last place. The move depends on the operation, on the shapes and strides of its arguments, and on
`--rounding`, which numbers the machines; so equal calls still give equal results, as they do on every
machine, and calls of another shape may not. A test that fails here and not without depends on the processor.

False alarms: values that are exact on every machine but that the plugin does not recognise as such, for
instance the mean of one value. Child processes are not perturbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# The axis along which rows of a result are sums of terms of one scale.
SUMS = {
    **dict.fromkeys(
        ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "layer_norm", "native_layer_norm"), -1
    ),
    **dict.fromkeys(
        ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"),
        -1,
    ),
    **dict.fromkeys(("convolution", "conv1d", "conv2d", "conv3d"), 1),
}
OTHERS = frozenset(
    (
        "convolution_backward",
        "native_layer_norm_backward",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "native_batch_norm",
        "_native_batch_norm_legit",
        "native_batch_norm_backward",
        "batch_norm",
        "native_group_norm",
        "mean",
        "sum",
        "var",
        "var_mean",
        "std",
        "logsumexp",
        "cumsum",
        "linalg_vector_norm",
        "norm",
        "mv",
        "dot",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
        "grid_sampler_2d",
        "avg_pool2d",
        "_adaptive_avg_pool2d",
        "_softmax",
        "_log_softmax",
        "softmax",
        "log_softmax",
        "_softmax_backward_data",
        "_log_softmax_backward_data",
        "exp",
        "log",
        "log1p",
        "expm1",
        "gelu",
        "gelu_backward",
        "erf",
        "tanh",
        "sigmoid",
        "silu",
        "silu_backward",
        "sin",
        "cos",
        "pow",
        "rsqrt",
        "elu",
        "softplus",
    )
)


def is_real(x: Any) -> bool:
    """Return whether a result is a tensor of numbers: not of integers, nor a fake or meta tensor."""
    return type(x) is Tensor and x.is_floating_point() and not x.is_meta


class Perturb(TorchDispatchMode):
    """Move results by what kernels of another machine may round."""

    def __init__(self, machine: int) -> None:
        super().__init__()
        self.machine = machine

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Let compiled code run: PyTorch otherwise refuses to compile while a mode is active."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in SUMS or name in OTHERS:
            call = [(tuple(x.shape), x.stride()) for x in args if type(x) in (Tensor, nn.Parameter)]
            for i, part in enumerate(result if isinstance(result, tuple | list) else [result]):
                if is_real(part) and not any(part is x for x in args):
                    self.move(part.detach(), f"{self.machine} {name} {call} {i}", SUMS.get(name))
        return result

    def move(self, x: Tensor, call: str, dim: int | None) -> None:
        """Move values by at most one unit in the last place of their scale, in place."""
        exact = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        generator = torch.Generator().manual_seed(crc32(call.encode()))
        noise = torch.rand(x.shape, generator=generator).to(exact) * 2 - 1
        values = x.to(exact)
        # Integers and their like are exact in any order: zeros, counts, sums of masks, powers of two.
        grid = 1 if exact != x.dtype else 1024
        rounded = values.isfinite() & (values * grid != (values * grid).round())
        scale = values.abs()
        # Terms may cancel, unless all are positive.
        if dim is not None and x.ndim > 1 and not (values >= 0).all():
            rows = values.nan_to_num(0, 0, 0).square().mean(dim, keepdim=True).sqrt()
            scale = scale.maximum(rows)
        x.copy_(torch.where(rounded, values + noise * scale * torch.finfo(x.dtype).eps, values))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounding", type=int, default=0, help="which machine's rounding")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    with Perturb(pyfuncitem.config.getoption("rounding")):
        return (yield)
