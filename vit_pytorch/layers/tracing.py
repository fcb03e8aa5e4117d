"""What tracers of graphs cannot follow, and how it stays out of their way."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch.fx import Proxy

P = ParamSpec("P")
R = TypeVar("R")


def is_tracing(*values: object) -> bool:
    """Return whether a graph is being traced, by FX of these values, by `torch.jit.trace` or by a compiler.

    Checks of shapes and types are skipped then: they would become part of the graph, or end the trace.
    """
    return (
        torch.compiler.is_compiling() or torch.jit.is_tracing() or any(isinstance(v, Proxy) for v in values)
    )


def static_size(size: Sequence[int]) -> tuple[int, ...]:
    """Return a size as numbers; a graph of `torch.jit.trace` serves the size of its example."""
    if not torch.jit.is_tracing():
        return tuple(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(int(extent) for extent in size)


def concrete(extent: int) -> int:
    """Return a size as a number, also where `torch.jit.trace` stands in a tensor for it; for `fx_leaf`s."""
    return int(extent) if torch.jit.is_tracing() else extent


def fx_leaf(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that reads sizes, so that FX's symbolic tracing records its call and not its body.

    `torch.fx.wrap` does the same for the module in which it stands alone; this one acts wherever the function
    is imported. Sizes stay dynamic in the graph. `torch.jit.trace` is not to warn of what the function
    decides by the sizes of maps: its graph serves one size, and batches of any.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.jit.is_tracing():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                return function(*args, **kwargs)
        proxy = next((value for value in (*args, *kwargs.values()) if isinstance(value, Proxy)), None)
        if proxy is None:
            return function(*args, **kwargs)
        # A proxy stands for what the function will return.
        return proxy.tracer.create_proxy("call_function", call, args, kwargs)  # type: ignore[return-value]

    return call
