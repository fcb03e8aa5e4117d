"""Watching a model that learns without labels: what its features are worth, and whether they collapse."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_pytorch.data import ImageData
from vit_pytorch.ssl.collapse import entropy_of, feature_spread
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.engine import process_states
from vit_pytorch.training.pretraining.config import MonitorConfig
from vit_pytorch.training.pretraining.methods import backbone_of
from vit_pytorch.training.probing import Labelled, embed_dataset, measure, spread_over
from vit_pytorch.training.task import Batch

if TYPE_CHECKING:
    from vit_pytorch.training.loop import Loop

logger = logging.getLogger(__name__)

KNN = "val/knn_accuracy"
SPREAD = "val/feature_std"
ENTROPY = "val/teacher_entropy"
USAGE = "val/teacher_usage"


class Monitor(Callback):
    """Measures the features of the validation images after each epoch, and raises the alarm at a collapse.

    A validation then also measures ``val/feature_std``, the spread of the features; of a teacher
    ``val/teacher_entropy``, the mean entropy of what it says, and ``val/teacher_usage``, the entropy of its
    mean, both in nats; at intervals ``val/knn_accuracy``, how often the nearest neighbours among training
    images have the right class.

    Args:
        config: What is watched, and what counts as a collapse.
        data: The images of the training.

    Attributes:
        alarms: The epoch and the words of each alarm so far.
        start: Accuracy of the nearest neighbours before the first step, where it was measured.

    Raises:
        ValueError: Where more neighbours shall vote than there are images, other than by default.
    """

    def __init__(self, config: MonitorConfig, data: ImageData) -> None:
        self.config = config
        self.data = data
        self.alarms: list[dict[str, Any]] = []
        self.start: float | None = None
        self._in_a_row = 0
        # of a stream none is known, and without classes none is needed
        known = data.opened.train if data.opened.train.listed else data.opened.val
        self._bank = spread_over(known, config.knn_images)
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._said = torch.zeros(0)
        self._entropy = 0.0
        self._neighbours = min(config.neighbours, len(self._bank))
        self._knn_every = config.knn_every if data.opened.classes else None
        # the default bends to the data, what was asked for does not
        asked = config.neighbours != MonitorConfig.neighbours
        if self._knn_every is not None and asked and config.neighbours > len(self._bank):
            raise ValueError(
                f"monitor.neighbours are among the {len(self._bank)} training images, got {config.neighbours}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the alarms so far, and how long there have been signs of the next."""
        return {"alarms": list(self.alarms), "in_a_row": self._in_a_row, "start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on watching."""
        self.alarms, self._in_a_row = list(state_dict["alarms"]), state_dict["in_a_row"]
        self.start = state_dict.get("start")

    def on_validation_start(self, loop: Loop) -> None:
        """Begin anew."""
        self._seen, self._said, self._entropy = [], torch.zeros(0), 0.0

    def on_validation_batch_end(self, loop: Loop, batch: Batch, outputs: dict[str, Tensor]) -> None:
        """Keep what the batch gave."""
        self._seen.append((outputs["features"].float().cpu(), batch.targets.cpu()))
        if "said" in outputs:
            said = outputs["said"]
            self._said = said.sum(dim=0).cpu() + (self._said if len(self._said) else 0)
            self._entropy += float(entropy_of(said).sum())

    def on_validation_end(self, loop: Loop, metrics: dict[str, float]) -> None:
        """Measure; of several processes all images count."""
        mine = (*map(torch.cat, zip(*self._seen, strict=True)), self._said, self._entropy)
        parts = process_states(loop.fabric, mine)
        val = Labelled.join(part[:2] for part in parts)
        found: dict[str, float] = {}
        if len(val.features) > 1:
            found[SPREAD] = float(feature_spread(val.features))
        if len(self._said):
            count = len(val.features)
            found[ENTROPY] = sum(part[3] for part in parts) / count
            found[USAGE] = float(entropy_of(torch.stack([part[2] for part in parts]).sum(dim=0) / count))
        if due(self._knn_every, loop):
            found[KNN] = measure("knn", self._known(loop), val, neighbours=self._neighbours)
        metrics.update(found)
        if loop.step == 0:
            self.start = found.get(KNN)
            if self.start is not None and loop.fabric.is_global_zero:
                print(f"start  nearest neighbours {self.start:.2%} in validation", flush=True)
        self._judge(loop, found)

    def _known(self, loop: Loop) -> Labelled:
        """Compute the features among which neighbours are sought, each process a part of them."""
        fabric, model = loop.fabric, backbone_of(loop.task.model)
        ranks = {"rank": fabric.global_rank, "world_size": fabric.world_size}
        with fabric.autocast():
            mine = embed_dataset(model, self._bank, self.data, **ranks)
        return Labelled.join(process_states(fabric, mine))

    def _judge(self, loop: Loop, found: dict[str, float]) -> None:
        early = loop.epoch < self.config.grace * loop.epochs
        what = None if early else find_collapse(found, self.config, logits=len(self._said))
        self._in_a_row = self._in_a_row + 1 if what else 0
        if what and self._in_a_row == self.config.patience:
            epoch = loop.epoch + 1
            self.alarms.append({"epoch": epoch, "what": what})
            if loop.fabric.is_global_zero:
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


def due(every: int | None, loop: Loop) -> bool:
    """Return whether what is done every so many epochs, and after the last, is to be done in this one."""
    done = loop.epoch + 1
    return every is not None and (done % every == 0 or done == loop.epochs)
