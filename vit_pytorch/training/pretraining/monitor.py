"""Watching a model that learns without labels: what its features are worth, and whether they collapse."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vit_pytorch.ssl.collapse import entropy_of, feature_spread
from vit_pytorch.training.data import ImageData, ImageLoader
from vit_pytorch.training.pretraining.config import MonitorConfig
from vit_pytorch.training.pretraining.methods import backbone_of
from vit_pytorch.training.probing import Labelled, embed, measure, read_features, spread_over

logger = logging.getLogger(__name__)

KNN = "val/knn_accuracy"
SPREAD = "val/feature_std"
ENTROPY = "val/teacher_entropy"
USAGE = "val/teacher_usage"


class Monitor(Callback):
    """Measures the features of the validation images after each epoch, and raises the alarm at a collapse.

    Logged: ``val/feature_std``, the spread of the features; of a teacher ``val/teacher_entropy``, the mean
    entropy of what it says, and ``val/teacher_usage``, the entropy of its mean, both in nats; at intervals
    ``val/knn_accuracy``, how often the nearest neighbours among training images have the right class.

    Args:
        config: What is watched, and what counts as a collapse.
        data: The images of the training.

    Attributes:
        alarms: The epoch and the words of each alarm so far.

    Raises:
        ValueError: Where more neighbours shall vote than there are images.
    """

    def __init__(self, config: MonitorConfig, data: ImageData) -> None:
        self.config = config
        self.data = data
        self.alarms: list[dict[str, Any]] = []
        self._in_a_row = 0
        self._bank = spread_over(data.opened.train, config.knn_images)
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._said = torch.zeros(0)
        self._entropy = 0.0
        if config.knn_every is not None and config.neighbours > len(self._bank):
            raise ValueError(
                f"monitor.neighbours are among the {len(self._bank)} training images, got {config.neighbours}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Alarms so far, and how long there have been signs of the next."""
        return {"alarms": list(self.alarms), "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching."""
        self.alarms, self._in_a_row = list(state_dict["alarms"]), state_dict["in_a_row"]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew; a value of an earlier epoch is not this one's."""
        self._seen, self._said, self._entropy = [], torch.zeros(0), 0.0
        trainer.callback_metrics.pop(KNN, None)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep what the batch gave."""
        self._seen.append((outputs["features"].float().cpu(), batch[1].cpu()))
        if "said" in outputs:
            said = outputs["said"]
            self._said = said.sum(dim=0).cpu() + (self._said if len(self._said) else 0)
            self._entropy += float(entropy_of(said).sum())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure; of several processes all images count."""
        parts = _gather((*map(torch.cat, zip(*self._seen, strict=True)), self._said, self._entropy))
        val = Labelled(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
        found: dict[str, float] = {}
        if len(val.features) > 1:
            found[SPREAD] = float(feature_spread(val.features))
        if len(self._said):
            count = len(val.features)
            found[ENTROPY] = sum(part[3] for part in parts) / count
            found[USAGE] = float(entropy_of(torch.stack([part[2] for part in parts]).sum(dim=0) / count))
        if due(self.config.knn_every, trainer):
            found[KNN] = measure(
                "knn", self._known(trainer, pl_module), val, neighbours=self.config.neighbours
            )
        # every process has the same values
        pl_module.log_dict(found, sync_dist=trainer.world_size > 1)
        self._judge(trainer, found)

    def _known(self, trainer: L.Trainer, pl_module: Any) -> Labelled:
        """Compute the features among which neighbours are sought, each process a part of them."""
        data, model = self.data, backbone_of(pl_module.model)
        dtype = next(model.parameters()).dtype
        loader = ImageLoader(
            self._bank,
            data.preprocessing,
            None,
            batch_size=data.batch_size,
            num_classes=data.num_classes,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            workers=data.workers,
            worker_timeout=data.worker_timeout,
            on_bad=data.on_bad,
        )
        with trainer.precision_plugin.val_step_context():
            mine = read_features(lambda images: embed(model, images), loader, pl_module.device, dtype)
        parts = _gather(mine)
        return Labelled(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))

    def _judge(self, trainer: L.Trainer, found: dict[str, float]) -> None:
        early = trainer.current_epoch < self.config.grace * (trainer.max_epochs or 0)
        what = None if early else find_collapse(found, self.config, logits=len(self._said))
        self._in_a_row = self._in_a_row + 1 if what else 0
        if what and self._in_a_row == self.config.patience:
            epoch = trainer.current_epoch + 1
            self.alarms.append({"epoch": epoch, "what": what})
            if trainer.is_global_zero:
                logger.warning("collapse, seen for %d epochs up to epoch %d: %s", self._in_a_row, epoch, what)


def find_collapse(found: dict[str, float], config: MonitorConfig, *, logits: int = 0) -> str | None:
    """Say in words what has collapsed; None where nothing has.

    Args:
        found: What was measured, under the names that `Monitor` logs.
        config: What counts as a collapse.
        logits: Number of the teacher's logits, where there is a teacher.
    """
    if ENTROPY in found and found[USAGE] - found[ENTROPY] < config.least_information:
        most = math.log(logits)
        figures = (
            f"its mean distribution has an entropy of {found[USAGE]:.3f}, each {found[ENTROPY]:.3f} of "
            f"{most:.3f} nats at most"
        )
        if found[ENTROPY] > 0.9 * most:
            return f"the teacher is uniform for every image ({figures}); a lower teacher_temp sharpens it"
        if found[USAGE] < 0.1 * most:
            return (
                f"the teacher gives every image the same logit ({figures}); a lower center_decay spreads it"
            )
        return f"the teacher says the same of every image ({figures})"
    if SPREAD in found and found[SPREAD] < config.least_spread:
        return (
            f"the features of all images point the same way (spread {found[SPREAD]:.4f}, alarm below "
            f"{config.least_spread}); a lower lr or a longer warm-up may keep them apart"
        )
    return None


def due(every: int | None, trainer: L.Trainer) -> bool:
    """Whether something that is done every so many epochs, and after the last, is to be done in this one."""
    if every is None or trainer.sanity_checking:
        return False
    done = trainer.current_epoch + 1
    return done % every == 0 or done == trainer.max_epochs


def _gather(mine: Any) -> list[Any]:
    """Collect a value of every process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found
