"""A guard against losses and gradients that are not finite."""

import logging
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """Loss, gradients or weights are not finite."""


class FiniteGuard(Callback):
    """Checks, once for each optimizer step and before it, that losses and gradients are finite.

    Args:
        on_nonfinite: ``stop`` raises; ``skip`` leaves the step out, so that the weights and the optimizer's
            moments stay as they are.
        patience: With ``skip``, how many steps in a row may be left out before training stops all the same.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip"] = "stop", *, patience: int = 10) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite must be 'stop' or 'skip', got {on_nonfinite!r}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        self.on_nonfinite = on_nonfinite
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0
        self._losses: dict[int, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Note the loss of each batch that the coming step accumulates."""
        self._losses[trainer.fit_loop.batch_idx] = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the losses and the norm of the gradients."""
        losses, self._losses = self._losses, {}
        if self._finite(trainer, optimizer, losses):
            self._in_a_row = 0
            return
        bad = {batch: float(loss) for batch, loss in losses.items() if not torch.isfinite(loss)}
        what = (
            ", ".join(f"the loss of batch {batch} is {value}" for batch, value in bad.items())
            or f"the gradients of batch {', '.join(map(str, losses))} are not finite"
        )
        message = f"step {trainer.global_step}, epoch {trainer.current_epoch}: {what}"
        if self.on_nonfinite == "stop" or self._in_a_row == self.patience:
            raise NonFiniteError(f"{message}; the step was not taken, the weights are the last finite ones")
        self.skipped += 1
        self._in_a_row += 1
        logger.warning("%s; the step is left out (%d so far)", message, self.skipped)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _finite(self, trainer: L.Trainer, optimizer: Optimizer, losses: dict[int, Tensor]) -> bool:
        total = sum(losses.values(), torch.zeros((), device=trainer.strategy.root_device))
        # with a gradient scaler, overflow is part of the method and the scaler itself leaves the step out
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(gradients)
            total = total + (norm.full_tensor() if isinstance(norm, DTensor) else norm)
        return trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(total)), all=True)
