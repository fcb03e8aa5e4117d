"""The centre that keeps a teacher from saying the same of every image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


class Centre(nn.Module):
    """The moving average of a teacher's mean logits, in float32 whatever the precision of the rest.

    Calls in training note the logits; `update` moves the centre. So it moves once for each step of the
    optimizer, however many batches a step has.

    Args:
        decay: how much of the old centre stays at an update, in [0, 1].

    Raises:
        ValueError: where `decay` is outside its range.
    """

    value: Tensor
    total: Tensor

    def __init__(self, num_classes: int, *, decay: float = 0.9) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a moving average is in [0, 1], got {decay}")
        self.decay = decay
        self.register_buffer("value", torch.zeros(num_classes))
        self.register_buffer("total", torch.zeros(num_classes + 1), persistent=False)

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "*b k"], temperature: float) -> Float[Tensor, "*b k"]:
        """Return the centred, sharpened distributions (DINO, arXiv:2104.14294, equation 1)."""
        logits = logits.float()
        if self.training:
            rows = logits.flatten(0, -2)
            self.total += torch.cat([rows.sum(dim=0), rows.new_tensor([len(rows)])])
        return ((logits - self.value) / temperature).softmax(dim=-1)

    @torch.no_grad()
    def update(self) -> None:
        """Move the centre towards the mean of the logits since the last update (equation 4).

        Of several processes all logits count. Without any, the centre stays.
        """
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.total)
        count = self.total[-1]
        self.value.lerp_(self.total[:-1] / count.clamp_min(1), (1 - self.decay) * (count > 0))
        self.total.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Centre:
        """Follow the module from device to device, and stay in float32."""
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self
