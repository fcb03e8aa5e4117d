"""Training a model without labels, by a method that is wrapped around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from vit_pytorch.base import VisionModel
from vit_pytorch.data.seeding import generator_for
from vit_pytorch.dino import Dino
from vit_pytorch.ssl.schedules import Schedule
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig
from vit_pytorch.training.pretraining.methods import (
    backbone_of,
    forget_step,
    last_layers,
    learner_of,
    teacher_outputs,
)
from vit_pytorch.training.probing import embed
from vit_pytorch.training.task import Batch, Measured, Task

# what a stream of random numbers is for
TRAINING, VALIDATION = 1, 2


class Pretrainer(Task):
    """Training of a model by a method that needs no labels.

    Masks and views of a batch are a function of (seed, epoch, batch, process), in validation of (seed, batch,
    process): they depend neither on where a run was interrupted nor on what else draws random numbers.

    Logged for each step, of a method with a teacher: its temperature and momentum. Validation measures
    `val/loss`, and gives callbacks the `features` of the images and, of a teacher, its distributions, `said`.

    Args:
        method: the loss around a model: `forward(images, generator=…)`
        optimizer: optimizer
        schedule: course of the learning rate
        weight_decay: weight decay as a function of the step; default that of the optimizer
        seed: of masks and views; default 0
        anchor: weight of the distance between the features and those of `start`; default 0
        start: the model that training starts from, with its weights; it stays as it is
    """

    def __init__(
        self,
        method: nn.Module,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        weight_decay: Schedule | None = None,
        seed: int = 0,
        anchor: float = 0.0,
        start: VisionModel | None = None,
    ) -> None:
        super().__init__(method, optimizer=optimizer, schedule=schedule)
        self.weight_decay = weight_decay
        self.seed = seed
        self.anchor = anchor
        # in a tuple, where neither checkpoints nor optimizers look for modules
        self._start: tuple[VisionModel, ...] = () if start is None else (start.eval().requires_grad_(False),)

    def start(self, rank: int) -> None:
        """Note the process's rank, and put the model that training starts from beside the one that learns."""
        super().start(rank)
        for start in self._start:
            start.to(next(self.model.parameters()))

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss of a batch, whose labels are not looked at."""
        generator = generator_for(self.seed, TRAINING, batch.epoch, batch.batch_idx, self.rank)
        loss = self.network(batch.images, generator=generator)
        # several processes wait for gradients also of what is frozen for a while
        loss = loss + 0 * sum((parameter.sum() for parameter in self._frozen()), loss.new_zeros(()))
        logged: dict[str, Any] = {}
        for start in self._start:
            distance = self._distance(start, batch)
            loss = loss + self.anchor * distance
            logged["train/distance"] = distance.detach()
        if isinstance(self.model, Dino):
            step = int(self.model.steps)
            logged |= {"teacher_temp": self.model.teacher_temp(step), "momentum": self.model.decay(step)}
        return loss, logged

    def _distance(self, start: VisionModel, batch: Batch) -> Tensor:
        """Compute how far the features are from those of the model that training starts from."""
        images = batch.images
        assert isinstance(images, Tensor), "pretraining takes images of one size"
        size = tuple(start.image_size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        with torch.no_grad():
            wanted = embed(start, images)
        return 1 - F.cosine_similarity(embed(learner_of(self.model), images), wanted).mean()

    def measure(self, batch: Batch) -> Measured:
        """Measure a batch for validation; the same masks and views in every epoch."""
        images = batch.images
        assert isinstance(images, Tensor), "pretraining takes images of one size"
        generator = generator_for(self.seed, VALIDATION, batch.batch_idx, self.rank)
        sums = {"val/loss": self.model(images, generator=generator) * len(images)}
        if isinstance(self.model, Dino):
            features, said = teacher_outputs(self.model, images)
            return Measured(sums, len(images), {"features": features, "said": said})
        return Measured(sums, len(images), {"features": embed(backbone_of(self.model), images)})

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        """Set the weight decay; take the gradients of what is frozen, so that moments do not move it."""
        if self.weight_decay is not None:
            for group in optimizer.param_groups:
                if group["weight_decay"] > 0:
                    group["weight_decay"] = self.weight_decay(step)
        for parameter in self._frozen():
            parameter.grad = None

    def after_step(self, taken: bool) -> None:
        """Move the teacher on, once; a step that was left out leaves no trace in it."""
        if isinstance(self.model, Dino):
            if taken:
                self.model.update_moving_average()
            else:
                forget_step(self.model)

    def _frozen(self) -> list[nn.Parameter]:
        """Return the last layers at the start, where they do not learn yet."""
        method = self.model
        frozen = isinstance(method, Dino) and int(method.steps) < method.freeze_last_layer
        return last_layers(method) if frozen else []
