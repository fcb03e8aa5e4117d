"""Supervised training of image classifiers."""

import math

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from vit_pytorch.training.data.transforms import Images
from vit_pytorch.training.optim import OptimizerConfig, ScheduleConfig, make_optimizer, make_schedule

IGNORED = -100


class OptimizedModule(L.LightningModule):
    """What every training shares: a model, its optimizer and schedule, and how gradients are clipped.

    Logged: ``train/loss`` and ``lr`` for each step.

    Args:
        model: What learns.
        optimizer: The optimizer.
        schedule: The learning rate's course over the training.
    """

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

    def log_step(self, loss: Tensor) -> None:
        """Log a training step's loss and its learning rate."""
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, sync_dist=True)
        rate = max(group["lr"] for group in self.trainer.optimizers[0].param_groups)
        self.log("lr", rate, on_step=True, on_epoch=False)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and under bf16, too, where it refuses every fused optimizer."""
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(
            self.trainer.precision_plugin, optimizer, gradient_clip_val or 0.0, algorithm
        )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer, and its schedule stepped once for each update."""
        total = self.trainer.estimated_stepping_batches
        epochs = self.trainer.max_epochs
        if not math.isfinite(total) or epochs is None or epochs < 1:
            raise ValueError(
                f"the schedule needs the number of steps, but max_epochs is {epochs} and steps are {total}; "
                "set max_epochs and, for data of unknown length, limit_train_batches"
            )
        total = int(total)
        warmup = round(total * self.schedule_config.warmup_epochs / epochs)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = make_optimizer(self.model, self.optimizer_config, scaled=scaled)
        schedule = make_schedule(
            optimizer,
            lr=self.optimizer_config.lr,
            min_lr=self.schedule_config.min_lr,
            warmup=warmup,
            total=total,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Classifier(OptimizedModule):
    """Trains a model that maps images to logits, and validates it.

    Logged: ``train/loss`` and ``lr`` for each step; ``val/loss``, ``val/accuracy`` and, with more than five
    classes, ``val/accuracy_top5`` for each validation. ``val/objective`` is the loss with the label smoothing
    of the training, by which weights of different epochs compare better: the plain loss of a model that was
    taught to be unsure grows while it still improves. A trained classifier is measured by
    :func:`~vit_pytorch.training.evaluation.evaluate`.

    Args:
        model: Maps images to logits; its ``num_classes`` is the number of logits.
        optimizer: The optimizer.
        schedule: The learning rate's course over the training.
        label_smoothing: Share of each target's probability that is spread over all classes, in [0, 1).
            ``val/loss`` is without it.

    Raises:
        ValueError: If the model has fewer than two classes, or `label_smoothing` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer=optimizer, schedule=schedule)
        num_classes = model.num_classes
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, the model has {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        accuracies: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", ignore_index=IGNORED)
        }
        if num_classes > 5:
            top5 = MulticlassAccuracy(num_classes, top_k=5, average="micro", ignore_index=IGNORED)
            accuracies["accuracy_top5"] = top5
        self.val_metrics = MetricCollection(accuracies, prefix="val/")

    def forward(self, images: Images) -> Tensor:
        """Logits of a batch of images, or of a list of images of different sizes."""
        return self.model(images)

    def training_step(self, batch: tuple[Images, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch of images and targets: labels ``(b,)``, or probabilities ``(b, num_classes)``."""
        images, targets = batch
        check_targets(targets, self.num_classes)
        loss = self.loss(images, targets)
        self.log_step(loss)
        return loss

    def loss(self, images: Images, targets: Tensor) -> Tensor:
        """What training minimises on a batch."""
        return F.cross_entropy(
            self(images), targets, ignore_index=IGNORED, label_smoothing=self.label_smoothing
        )

    def validation_step(self, batch: tuple[Images, Tensor], batch_idx: int) -> None:
        """Measure a batch for validation."""
        images, labels = batch
        counted = check_targets(labels, self.num_classes)
        logits = self(images)
        loss, objective = (
            F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing)
            for smoothing in (0.0, self.label_smoothing)
        )
        self.val_metrics.update(logits, labels)
        self.log("val/loss", loss, on_epoch=True, batch_size=counted, sync_dist=True, prog_bar=True)
        self.log("val/objective", objective, on_epoch=True, batch_size=counted, sync_dist=True)
        self.log_dict(self.val_metrics, on_epoch=True, prog_bar=True)


def check_targets(targets: Tensor, num_classes: int) -> int:
    """Check a batch's targets: labels, of which -100 is ignored, or probabilities.

    Returns:
        How many of them count.

    Raises:
        ValueError: If a label is out of range, all labels are ignored, or probabilities have the wrong shape.
    """
    shape = tuple(targets.shape)
    if targets.is_floating_point():
        if len(shape) != 2 or shape[1] != num_classes:
            raise ValueError(f"targets as probabilities have the shape (batch, {num_classes}), got {shape}")
        return shape[0]
    if len(shape) != 1 or not shape[0]:
        raise ValueError(f"labels have the shape (batch,) with at least one of them, got {shape}")
    counts = targets != IGNORED
    ends = targets.where(counts, 0).aminmax()
    # one transfer for the three numbers
    low, high, counted = torch.stack([ends.min, ends.max, counts.sum()]).tolist()
    if not counted:
        raise ValueError(
            f"at least one label of a batch must count, but all {shape[0]} are {IGNORED} (ignored)"
        )
    if low < 0 or high >= num_classes:
        outside = low if low < 0 else high
        raise ValueError(f"labels must be in 0..{num_classes - 1} or {IGNORED} (ignored), got {outside}")
    return counted
