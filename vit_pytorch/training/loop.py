"""The training loop, in the open: all that happens to a batch, from the loader to the checkpoint, in order.

Supervised training, distillation, fine-tuning and pretraining differ by their `Task` only. Fabric is the
engine: devices, precision, several processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from vit_pytorch.layers.blocks import set_grad_checkpointing
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.ema import WeightAverage
from vit_pytorch.training.engine import gathered, sum_over_processes
from vit_pytorch.training.keeper import Checkpoints
from vit_pytorch.training.nan_guard import FiniteGuard, OnNonFinite
from vit_pytorch.training.random_state import random_state_kept, resume_random_state
from vit_pytorch.training.resume import collect_state
from vit_pytorch.training.task import Batch, Data, Measured, Task


class Loop:
    """A training that can be stopped, resumed and trusted.

    Args:
        fabric: from `make_fabric`, launched
        task: what is trained
        data: what it is trained on
        checkpoints: where and when checkpoints are written
        epochs: passes over the training batches
        accumulate: batches whose gradients one optimizer step adds up; the last step of an epoch may have
            fewer; default 1
        clip: largest norm of the gradients; default None
        ema: decay of a moving average of the weights, which validation and checkpoints then use; default None
        on_nonfinite: see `FiniteGuard`
        validations: validations in an epoch, the last one at its end; default 1
        from_start: whether the weights are validated and saved before the first step, too; default False
        patience: validations in a row without a new best one after which training ends; default None
        compiled: whether the network is compiled; default False
        activation_checkpointing: whether blocks are computed again in the backward pass, instead of keeping
            what is between their layers; default False
        callbacks: what looks on

    Attributes:
        epoch: Index of the epoch, from 0; at the end of training the number of epochs.
        batch: Batches done in it.
        step: Optimizer steps done, those left out included.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: Task,
        data: Data,
        *,
        checkpoints: Checkpoints,
        epochs: int,
        accumulate: int = 1,
        clip: float | None = None,
        ema: float | None = None,
        on_nonfinite: OnNonFinite = "stop",
        validations: int = 1,
        from_start: bool = False,
        patience: int | None = None,
        compiled: bool = False,
        activation_checkpointing: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.fabric, self.task, self.checkpoints, self.callbacks = fabric, task, checkpoints, callbacks
        self.epochs, self.accumulate, self.clip = epochs, accumulate, clip
        self.patience, self.from_start = patience, from_start
        self.epoch = self.batch = self.step = 0
        data.rank, data.world_size = fabric.global_rank, fabric.world_size
        self.train_loader, self.val_loader = data.train_dataloader(), data.val_dataloader()
        self.epoch_batches = len(self.train_loader)
        self.validation_points = {self.epoch_batches * i // validations for i in range(1, validations + 1)}

        if activation_checkpointing:
            set_grad_checkpointing(task.model)
        self.module = fabric.setup_module(task)  # on its device, in its precision, wrapped or sharded
        task.start(fabric.global_rank)
        if compiled:
            task.compile_network()
        self.scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
        self.optimizer = task.make_optimizer(scaled=self.scaled)
        self.stepper: Any = fabric.setup_optimizers(self.optimizer)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total_steps = epochs * -(-self.epoch_batches // accumulate)
        self.schedule = task.make_schedule(total=self.total_steps, epochs=epochs)
        self.average = WeightAverage(task, ema) if ema is not None else None
        self.guard = FiniteGuard(on_nonfinite)
        self.resumed_states: list[dict[str, Any]] | None = None

    def run(self) -> None:
        """Train to the end, or until patience ends."""
        fabric = self.fabric
        self.call("on_train_start")
        if self.from_start and self.step == 0:
            self.validate()
            self.save(0)
        while self.epoch < self.epochs and not self.out_of_patience:
            for images, targets in self.open_epoch():
                batch = fabric.to_device(Batch(images, targets, self.epoch, self.batch))
                self.call("on_batch_start", batch)
                self.batch += 1
                last = self.batch == self.epoch_batches
                steps_now = last or self.batch % self.accumulate == 0

                self.guard.keep_buffers(self.task)
                with fabric.no_backward_sync(self.module, enabled=not steps_now):
                    loss, metrics = self.module(batch)
                    fabric.backward(loss / self.accumulate)
                self.guard.note(batch.batch_idx, loss)
                if steps_now:
                    self.take_step()
                self.call("on_batch_end", batch, {"train/loss": loss.detach(), **metrics})

                if self.batch in self.validation_points:
                    measured = self.validate()
                if steps_now and not last:
                    self.save_if_due()
            self.call("on_epoch_end", measured)
            signum = self.checkpoints.signals.agreed(fabric)
            self.epoch, self.batch = self.epoch + 1, 0
            self.save(signum)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last validations have all been worse than an earlier one."""
        return self.patience is not None and self.checkpoints.since_best >= self.patience

    def open_epoch(self) -> Iterator[tuple[Any, Tensor]]:
        """Return the batches of the epoch that are left; go on with the random numbers of a checkpoint."""
        self.train_loader.sampler.set_epoch(self.epoch)
        states, self.resumed_states = self.resumed_states, None
        ranks = {"rank": self.fabric.global_rank, "world_size": self.fabric.world_size}
        if states is not None and self.batch == 0:
            resume_random_state(states, **ranks)
        batches = iter(self.train_loader)
        if states is not None and self.batch > 0:
            # an iterator may draw a seed, which the run that was interrupted had done before
            resume_random_state(states, **ranks)
        return batches

    def take_step(self) -> None:
        """Clip, check, step, and move the average."""
        self.task.before_step(self.optimizer, self.step)
        factor = self.schedule(self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.clip is not None:
            norm = self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=self.clip, error_if_nonfinite=False
            )
        else:
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"]]
            norm = torch.nn.utils.get_total_norm([grad for grad in gradients if grad is not None])
        # with a gradient scaler, overflow is part of the method and the scaler itself leaves the step out
        checked = None if self.scaled else gathered(norm)
        taken = self.guard.passes(self.fabric, checked, epoch=self.epoch, step=self.step)
        self.call("on_step_start")
        if taken or self.scaled:
            self.stepper.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.task.after_step(taken)
        if self.average is not None and taken:
            self.average.update()

    def validate(self) -> dict[str, float]:
        """Measure the validation images by the weights that are kept, and compare with the best so far."""
        sums: dict[str, Tensor] = {}
        count = 0
        with random_state_kept(), self.kept_weights(), eval_mode(self.task), torch.no_grad():
            self.call("on_validation_start")
            for index, (images, targets) in enumerate(self.val_loader):
                batch = self.fabric.to_device(Batch(images, targets, self.epoch, index))
                found: Measured = self.module(batch)
                sums = {name: value.float() + sums.get(name, 0.0) for name, value in found.sums.items()}
                count += found.num_samples
                self.call("on_validation_batch_end", batch, found.outputs)
            totals = torch.stack([*sums.values(), torch.tensor(float(count), device=self.fabric.device)])
            *values, images_in_all = sum_over_processes(self.fabric, totals).tolist()
            metrics = {name: value / images_in_all for name, value in zip(sums, values, strict=True)}
            metrics |= self.task.finish_validation()
            self.call("on_validation_end", metrics)
        self.checkpoints.compare(metrics)
        return metrics

    def kept_weights(self) -> AbstractContextManager[None]:
        """Context manager: give the task the weights that are validated and kept."""
        return nullcontext() if self.average is None else self.average.applied()

    def save_if_due(self) -> None:
        """Write a checkpoint after a step inside an epoch, if it is time or a signal asks for it."""
        signum = self.checkpoints.signals.agreed(self.fabric)
        if signum or self.checkpoints.due(self.step):
            self.save(signum)

    def save(self, signum: int) -> None:
        """Write a checkpoint from which training goes on exactly; stop there after a signal."""
        self.checkpoints.save(
            self.fabric,
            {**self.task.state_dict(), **({} if self.average is None else self.average.named())},
            partial(collect_state, self),
            epoch=self.epoch,
            batch=self.batch or None,
            step=self.step,
            signum=signum,
        )

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all callbacks; see `Callback`."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)
