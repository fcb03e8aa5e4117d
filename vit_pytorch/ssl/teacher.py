"""A teacher that is the student's moving average."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class MeanTeacher(nn.Module):
    """A copy of a student that follows it by an exponential moving average (arXiv:1703.01780).

    It stays in eval, so that neither dropout nor the batch disturbs what it says, and gets no gradients.

    Args:
        student: what is copied; not kept.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> MeanTeacher:
        """Stay in eval, whatever the mode asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute what the student's copy computes, without gradients."""
        return self.model(*inputs, **options)

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Move every parameter and every statistic towards the student's: t <- decay t + (1 - decay) s.

        What is no floating-point number, such as a count of batches, is taken over.

        Args:
            student: what was copied, trained since.
            decay: how much of the old value stays, in [0, 1].

        Raises:
            ValueError: where `decay` is outside its range.
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a moving average is in [0, 1], got {decay}")
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for old, new in zip(_tensors(self.model), _tensors(student), strict=True):
            if old.is_floating_point():
                mine.append(old)
                theirs.append(new.to(old))
            else:
                old.copy_(new)
        torch._foreach_lerp_(mine, theirs, 1 - decay)


def _tensors(model: nn.Module) -> chain[Tensor]:
    return chain(model.parameters(), model.buffers())
