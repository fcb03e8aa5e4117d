"""What a training teaches: the loss of a batch, what validation measures, and what happens around a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.utilities.distributed import gather_all_tensors

from vit_pytorch.data.transforms import Images
from vit_pytorch.training.losses import IGNORED, Loss
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig, WarmupCosine, make_optimizer
from vit_pytorch.training.problems import MultiLabel, Regression, check_targets
from vit_pytorch.training.random_state import get_random_state, set_random_state

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    """One process's part of a batch, on its device.

    Args:
        images: (b, c, h, w), or (b, c, t, h, w), or a list of images of different sizes.
        targets: labels (b,), or probabilities (b, num_classes), or a row of targets (b, k) for each image
        epoch: index of the epoch, from 0
        batch_idx: index of the batch in its epoch, from 0
    """

    images: Images
    targets: Tensor
    epoch: int
    batch_idx: int


class Loader(Protocol):
    """A loader of training batches that can go on in the middle of an epoch, such as `ImageLoader`."""

    sampler: Any

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]: ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place reached."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a place."""


class Data(Protocol):
    """Data of a training, such as `ImageData`: each process loads its part, `rank` of `world_size`."""

    rank: int
    world_size: int

    def train_dataloader(self) -> Loader:
        """Return the loader of the training batches."""

    def val_dataloader(self) -> Iterable[Any]:
        """Return the loader of the validation batches."""


class Measured(NamedTuple):
    """What validation measured of a batch.

    Args:
        sums: values by name, summed over the images
        num_samples: number of images that count; the loop divides by it, summed over batches and processes
        outputs: tensors that callbacks look at, by name
    """

    sums: dict[str, Tensor]
    num_samples: int
    outputs: dict[str, Tensor]


class Task(nn.Module):
    """Base class of what the training loop trains; supervised or not, all trainings differ in this only.

    `forward` is `loss` in training and `measure` in eval mode, so that one call passes through whatever
    Fabric wraps around the task.

    Args:
        model: What is trained; its weights are saved under the prefix `model.`
        optimizer: optimizer; default `OptimizerConfig()`
        schedule: course of the learning rate; default `ScheduleConfig()`

    Attributes:
        rank: Index of this process, set by the loop.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer_config = optimizer or OptimizerConfig()
        self.schedule_config = schedule or ScheduleConfig()
        self.rank = 0
        # in a tuple, where neither checkpoints nor averages of weights look for modules
        self._network: tuple[nn.Module] = (model,)

    @property
    def network(self) -> Callable[..., Any]:
        """What computes the loss's inputs."""
        return self._network[0]

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]] | Measured:
        """Compute the loss of a batch, or in eval mode measure it."""
        return self.loss(batch) if self.training else self.measure(batch)

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss of a batch, and more values to log for this step, by name."""
        raise NotImplementedError

    def measure(self, batch: Batch) -> Measured:
        """Measure a batch for validation."""
        raise NotImplementedError

    def finish_validation(self) -> dict[str, float]:
        """Return what a validation measured that is no mean over images, by name; over all processes."""
        return {}

    def compile_network(self) -> None:
        """Compile the network at its first batch: as a whole, or block by block if that fails."""
        self._network = (CompiledNetwork(self._network[0]),)

    def start(self, rank: int) -> None:
        """Note the process's rank; called once, after the task was put on its device."""
        self.rank = rank

    def before_step(self, optimizer: Optimizer, step: int) -> None:
        """Change gradients or the optimizer's settings before a step, and before clipping.

        Args:
            optimizer: the optimizer
            step: index of the step, from 0
        """

    def after_step(self, taken: bool) -> None:
        """React to an optimizer step.

        Args:
            taken: False if the step was left out because the loss or gradients were not finite
        """

    def make_optimizer(self, *, scaled: bool = False) -> Optimizer:
        """Build the optimizer; see `vit_pytorch.training.optim.make_optimizer`."""
        return make_optimizer(self.model, self.optimizer_config, scaled=scaled)

    def make_schedule(self, *, total: int, epochs: int) -> WarmupCosine:
        """Build the course of the learning rate.

        Args:
            total: steps of the whole training
            epochs: its epochs
        """
        return WarmupCosine(
            lr=self.optimizer_config.lr,
            min_lr=self.schedule_config.min_lr,
            warmup=round(total * self.schedule_config.warmup_epochs / epochs),
            total=total,
        )


class CompiledNetwork(nn.Module):
    """A module that is compiled; if its first batch fails, the entries of its module lists are.

    Args:
        network: what is compiled; the object is kept, and what learns is in it
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.eager = network
        self.compiled: Any = torch.compile(network)
        self.tried = False

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Compute what the network computes."""
        if self.tried:
            return self.compiled(*arguments, **options)
        self.tried = True
        state = get_random_state()
        try:
            return self.compiled(*arguments, **options)
        except Exception as error:
            set_random_state(state)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            logger.warning("the model cannot be compiled as a whole, its blocks are: %s", reason)
        self.compiled = self.eager
        for module in self.eager.modules():
            if isinstance(module, nn.ModuleList):
                for block in module:
                    block.compile()
        return self.eager(*arguments, **options)


class Classifier(Task):
    """Supervised training of a model that maps images to logits.

    Validation measures `val/loss`, `val/accuracy` and, with more than five classes, `val/accuracy_top5`.
    `val/objective` is the loss with the label smoothing of the training, by which weights of different epochs
    compare better: the plain loss of a model that was taught to be unsure grows while it still improves.
    A trained classifier is measured by :func:`~vit_pytorch.training.evaluation.evaluate`.

    Args:
        model: maps images to logits; its `num_classes` is the number of logits
        optimizer: optimizer
        schedule: course of the learning rate
        label_smoothing: share of each target's probability that is spread over all classes, in [0, 1);
            `val/loss` is without it; default 0.0
        criterion: what is trained instead of the cross entropy, from logits and targets for each image; see
            `make_loss`

    Raises:
        ValueError: if the model has fewer than two classes, or `label_smoothing` is out of range
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        label_smoothing: float = 0.0,
        criterion: Loss | None = None,
    ) -> None:
        super().__init__(model, optimizer=optimizer, schedule=schedule)
        num_classes = model.num_classes
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, the model has {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.criterion = criterion

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the loss of a batch of images and targets: the mean over targets that count."""
        counted = check_targets(batch.targets, self.num_classes)
        logits = self.network(batch.images)
        if self.criterion is None:
            return self.cross_entropy(logits, batch.targets), {}
        return self.criterion(at_least_single(logits), batch.targets).sum() / counted, {}

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the smoothed cross entropy, in at least single precision."""
        logits = at_least_single(logits)
        if targets.is_floating_point():
            targets = targets.to(logits)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=self.label_smoothing)

    def measure(self, batch: Batch) -> Measured:
        """Measure a batch of images and labels for validation."""
        labels = batch.targets
        counted = check_targets(labels, self.num_classes)
        logits = at_least_single(self.model(batch.images))
        sums = {
            name: F.cross_entropy(
                logits, labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
            )
            for name, smoothing in (("val/loss", 0.0), ("val/objective", self.label_smoothing))
        }
        # labels that are ignored equal no prediction
        found = logits.topk(min(5, self.num_classes), dim=1).indices == labels[:, None]
        sums["val/accuracy"] = found[:, 0].sum()
        if self.num_classes > 5:
            sums["val/accuracy_top5"] = found.sum()
        return Measured(sums, counted, {})


class Supervised(Task):
    """Supervised training of a model whose targets are rows of numbers: several labels, or values.

    Validation measures `val/loss`, and what the problem's `figures` are.

    Args:
        model: maps images to as many outputs as the problem has names
        problem: what the outputs mean
        criterion: loss of each image from outputs and targets
        optimizer: optimizer
        schedule: course of the learning rate
    """

    def __init__(
        self,
        model: nn.Module,
        problem: MultiLabel | Regression,
        *,
        criterion: Loss,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
    ) -> None:
        super().__init__(model, optimizer=optimizer, schedule=schedule)
        self.problem = problem
        self.criterion = criterion
        self._seen: list[tuple[Tensor, Tensor]] = []

    def loss(self, batch: Batch) -> tuple[Tensor, Mapping[str, Any]]:
        """Return the mean loss of a batch of images and targets."""
        return self._losses(self.network(batch.images), batch.targets).mean(), {}

    def measure(self, batch: Batch) -> Measured:
        """Measure a batch for validation, and keep its outputs."""
        outputs = at_least_single(self.model(batch.images))
        losses = self._losses(outputs, batch.targets)
        self._seen.append((outputs, batch.targets))
        return Measured({"val/loss": losses.sum()}, len(losses), {})

    def finish_validation(self) -> dict[str, float]:
        """Measure all images of the validation."""
        outputs, targets = (_join(parts) for parts in zip(*self._seen, strict=True))
        self._seen = []
        found = self.problem.figures(self.problem.scores(outputs).cpu(), targets.cpu())
        return {f"val/{name}": value for name, value in found.items() if value is not None}

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = at_least_single(outputs)
        self.problem.check_targets(targets)
        return self.criterion(outputs, self.problem.normalize(targets.to(outputs)))


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    """Return the parts of all processes in one tensor."""
    mine = torch.cat(parts)
    return torch.cat(gather_all_tensors(mine)) if torch.distributed.is_initialized() else mine


def at_least_single(logits: Tensor) -> Tensor:
    """Return a tensor in single precision, if it is in half; sums of losses need more than 8 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
