"""An exponential moving average of weights, for validation and checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vit_pytorch.training.engine import local_tensor, shard_like, sharded_as


def average(averaged: Sequence[Tensor], current: Sequence[Tensor], steps: int, *, decay: float) -> None:
    """Move an exponential moving average one step, in place; integers, such as counters, are taken over.

    Args:
        averaged: averages so far, of one dtype and device
        current: what is averaged, in the same order and dtype
        steps: how many steps the average has seen. The first of them have a smaller decay, so that a short
            training is not held back by its start: at most `(1 + steps) / (10 + steps)`
        decay: weight of the average so far
    """
    if averaged[0].is_floating_point():
        move = get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))
        move(averaged, current, steps)
    else:
        for mean, value in zip(averaged, current, strict=True):
            mean.copy_(value)


class WeightAverage:
    """Moving average of a module's parameters and persistent buffers, in at least single precision.

    In bf16 an average would stand still: its steps are smaller than half the last bit.

    Args:
        module: what is averaged; of sharded parameters each process averages its shard
        decay: weight of the average so far, in (0, 1)

    Raises:
        ValueError: if `decay` is out of range
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema must be in (0, 1), got {decay}")
        self.decay = decay
        self.steps = 0
        self._live: dict[str, Tensor] = module.state_dict(keep_vars=True)
        self._mean = {name: _at_least_single(value) for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average once more, after a step of the optimizer."""
        by_dtype: dict[torch.dtype, list[str]] = defaultdict(list)
        for name, mean in self._mean.items():
            by_dtype[mean.dtype].append(name)
        for dtype, names in by_dtype.items():
            means = [self._mean[name] for name in names]
            current = [local_tensor(self._live[name]).to(dtype) for name in names]
            if self.steps:
                average(means, current, self.steps, decay=self.decay)
            else:
                for mean, value in zip(means, current, strict=True):
                    mean.copy_(value)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: give the module its averaged weights, and its own back afterwards."""
        own = {name: local_tensor(value).clone() for name, value in self._live.items()}
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(own)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            local_tensor(self._live[name]).copy_(value)

    def named(self) -> dict[str, Tensor]:
        """Return the averages that this process holds, under names of their own."""
        return {f"average of {name}": mean for name, mean in self._mean.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights, sharded if what is averaged is."""
        return {name: sharded_as(mean, self._live[name]) for name, mean in self._mean.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from averaged weights that have seen so many steps."""
        for name, mean in self._mean.items():
            mean.copy_(local_tensor(shard_like(state[name], self._live[name])))
        self.steps = steps


def _at_least_single(value: Tensor) -> Tensor:
    local = local_tensor(value).detach()
    dtype = torch.promote_types(local.dtype, torch.float32) if local.is_floating_point() else local.dtype
    return local.to(dtype, copy=True)
