"""Training a model without labels, by a method that is wrapped around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_pytorch.dino import Dino
from vit_pytorch.ssl.schedules import Schedule
from vit_pytorch.training.data.seeding import generator_for
from vit_pytorch.training.module import OptimizedModule
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.pretraining.methods import backbone_of, forget_step, last_layers, teacher_outputs
from vit_pytorch.training.probing import embed

# what a stream of random numbers is for
TRAINING, VALIDATION = 1, 2


class Pretrainer(OptimizedModule):
    """Trains a model by a method that needs no labels, and validates it.

    Masks and views of a batch are a function of (seed, epoch, batch, process), in validation of (seed, batch,
    process): they depend neither on where a run was interrupted nor on what else draws random numbers.

    Logged: ``train/loss`` and ``lr`` for each step, ``val/loss`` for each validation. Of a method with a
    teacher, also its temperature and momentum and the weight decay, for each step. A validation step gives
    the features of its images and, where there is a teacher, its distributions (see `Monitor`).

    Args:
        method: The loss around a model: `forward(images, generator=…)`.
        optimizer: The optimizer.
        schedule: The learning rate's course over the training.
        weight_decay: The weight decay as a function of the step; that of the optimizer unless given.
        seed: Of masks and views.
    """

    model: nn.Module

    def __init__(
        self,
        method: nn.Module,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        weight_decay: Schedule | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(method, optimizer=optimizer, schedule=schedule)
        self.weight_decay = weight_decay
        self.seed = seed

    def training_step(
        self, batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]], batch_idx: int
    ) -> Float[Tensor, ""]:
        """Loss of a batch, whose labels are not looked at."""
        generator = generator_for(self.seed, TRAINING, self.current_epoch, batch_idx, self.global_rank)
        loss = self.model(batch[0], generator=generator)
        # several processes wait for gradients also of what is frozen for a while
        loss = loss + 0 * sum((parameter.sum() for parameter in self._frozen()), loss.new_zeros(()))
        self.log_step(loss)
        if isinstance(self.model, Dino):
            step = int(self.model.steps)
            self.log("teacher_temp", self.model.teacher_temp(step), on_step=True, on_epoch=False)
            self.log("momentum", self.model.decay(step), on_step=True, on_epoch=False)
        return loss

    def validation_step(
        self, batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]], batch_idx: int
    ) -> dict[str, Tensor]:
        """Measure a batch for validation; the same masks and views in every epoch."""
        images, _ = batch
        generator = generator_for(self.seed, VALIDATION, batch_idx, self.global_rank)
        loss = self.model(images, generator=generator)
        self.log("val/loss", loss, on_epoch=True, batch_size=len(images), sync_dist=True, prog_bar=True)
        if isinstance(self.model, Dino):
            features, said = teacher_outputs(self.model, images)
            return {"features": features, "said": said}
        return {"features": embed(backbone_of(self.model), images)}

    def on_after_backward(self) -> None:
        """Let what is frozen have no gradients, so that neither moments nor weight decay move it."""
        for parameter in self._frozen():
            parameter.grad = None

    def _frozen(self) -> list[nn.Parameter]:
        """Return the last layers at the start, where they do not learn yet."""
        method = self.model
        frozen = isinstance(method, Dino) and int(method.steps) < method.freeze_last_layer
        return last_layers(method) if frozen else []

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take a step with the weight decay that it has, then move the teacher on, once."""
        if self.weight_decay is not None:
            set_weight_decay(optimizer, self.weight_decay(self.trainer.global_step))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if isinstance(self.model, Dino):
            if _taken(optimizer):
                self.model.update_moving_average()
            else:
                forget_step(self.model)


def set_weight_decay(optimizer: Optimizer, value: float) -> None:
    """Return all parameters that decay a weight decay."""
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = value


def _taken(optimizer: Optimizer) -> bool:
    """Whether a step was taken: one that is left out has no gradients."""
    return any(
        parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]
    )
