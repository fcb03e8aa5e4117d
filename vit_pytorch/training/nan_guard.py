"""A guard against losses and gradients that are not finite."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.training.engine import local_tensor, sum_over_processes
from vit_pytorch.training.losses import NonFiniteError

logger = logging.getLogger(__name__)

OnNonFinite = Literal["stop", "skip"]


class FiniteGuard:
    """Checks, once for each optimizer step and before it, that losses and gradients are finite.

    Args:
        on_nonfinite: `stop` raises; `skip` leaves the step out, so that the weights, the optimizer's moments
            and buffers such as batch norm's statistics stay as they are; default `stop`
        patience: with `skip`, how many steps in a row may be left out before training stops all the same;
            default 10
    """

    def __init__(self, on_nonfinite: OnNonFinite = "stop", *, patience: int = 10) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}")
        check_integer("patience", patience)
        self.on_nonfinite = on_nonfinite
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0
        self._losses: dict[int, Tensor] = {}
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were left out."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]

    def keep_buffers(self, module: nn.Module) -> None:
        """Keep the buffers as they are before the first batch of a step, in case the step is left out."""
        if self.on_nonfinite == "skip" and not self._losses:
            state = module.state_dict(keep_vars=True).values()
            buffers = [value for value in state if not isinstance(value, nn.Parameter)]
            self._buffers = [(buffer, buffer.clone()) for buffer in buffers]

    def note(self, batch: int, loss: Tensor) -> None:
        """Note the loss of a batch that the coming step accumulates."""
        self._losses[batch] = loss.detach()

    def passes(self, fabric: Fabric, norm: Tensor | None, *, epoch: int, step: int) -> bool:
        """Return whether a step may be taken: the losses and the norm of the gradients are finite.

        Args:
            fabric: asks the other processes, too
            norm: norm of all gradients; None if a gradient scaler looks after them
            epoch: for the message
            step: for the message

        Raises:
            NonFiniteError: if not, and the training shall stop
        """
        losses, self._losses = self._losses, {}
        values = [*losses.values(), *([] if norm is None else [norm])]
        total = torch.stack([value.float() for value in values]).sum()
        if not sum_over_processes(fabric, (~torch.isfinite(total)).int()):
            self._in_a_row = 0
            return True
        bad = {batch: float(loss) for batch, loss in losses.items() if not torch.isfinite(loss)}
        what = (
            ", ".join(f"the loss of batch {batch} is {value}" for batch, value in bad.items())
            or f"the gradients of batch {', '.join(map(str, losses))} are not finite"
        )
        message = f"step {step}, epoch {epoch}: {what}"
        if self.on_nonfinite == "stop" or self._in_a_row == self.patience:
            raise NonFiniteError(f"{message}; the step was not taken, the weights are the last finite ones")
        self.skipped += 1
        self._in_a_row += 1
        with torch.no_grad():
            for buffer, before in self._buffers:
                buffer.copy_(before)
        logger.warning("%s; the step is left out (%d so far)", message, self.skipped)
        return False


def check_finite(fabric: Fabric, state: Mapping[str, Tensor], what: str) -> None:
    """Check that weights and buffers are finite, in all processes.

    Args:
        fabric: asks the other processes, too
        state: tensors by name, whole or this process's part of them
        what: begins the message

    Raises:
        NonFiniteError: naming those that are not
    """
    bad = [name for name, value in state.items() if not torch.isfinite(local_tensor(value)).all()]
    if sum_over_processes(fabric, torch.tensor(len(bad))):
        raise NonFiniteError(f"{what}: {', '.join(bad[:3])}")
