"""What may look at a training while it runs: hooks that the loop calls, in the order in which it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from vit_pytorch.training.task import Batch

if TYPE_CHECKING:
    from vit_pytorch.training.loop import Loop


class Callback:
    """Base class of callbacks; none of the hooks does anything.

    What `state_dict` returns is saved in checkpoints under the name of the class, and comes back by
    `load_state_dict` before `on_train_start`.
    """

    def on_train_start(self, loop: Loop) -> None:
        """Run before the first batch, after a checkpoint was loaded."""

    def on_batch_start(self, loop: Loop, batch: Batch) -> None:
        """Run before the forward pass of a training batch."""

    def on_step_start(self, loop: Loop) -> None:
        """Run before an optimizer step, after clipping."""

    def on_batch_end(self, loop: Loop, batch: Batch, metrics: dict[str, Any]) -> None:
        """Run after a training batch and the step after it; `metrics` holds `train/loss`, a tensor."""

    def on_validation_start(self, loop: Loop) -> None:
        """Run before a validation; the task is in eval mode, with averaged weights."""

    def on_validation_batch_end(self, loop: Loop, batch: Batch, outputs: dict[str, Tensor]) -> None:
        """Run after a batch of a validation."""

    def on_validation_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        """Run at the end of a validation, which may add to what was measured; still in eval mode."""

    def on_epoch_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        """Run at the end of an epoch, after its validation, before its checkpoint is written."""

    def on_train_end(self, loop: Loop) -> None:
        """Run when training has ended, also by a signal or an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs; plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
