"""When checkpoints are written, which ones are kept, and which is best."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric
from torch import Tensor

from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.training.checkpoints import checkpoint_name, remove_checkpoint, write_checkpoint
from vit_pytorch.training.engine import gathered
from vit_pytorch.training.nan_guard import check_finite
from vit_pytorch.training.shards import split, write_shards
from vit_pytorch.training.signals import Interrupted, StopSignals

logger = logging.getLogger(__name__)


class Checkpoints:
    """Keeps checkpoints of a training, and stops it where one is written after a signal.

    In `folder`, the links `last` and `best` point to the latest checkpoint and to the one with the best
    validation, the later one of equals.

    Args:
        folder: where checkpoints are written
        monitor: name of the measured value that decides which checkpoint is best; None if none is best;
            default `val/loss`
        mode: whether the least (`min`) or the greatest (`max`) value is best; default `min`
        tie_break: name of the measured value of which the least decides among equals; default None
        keep: how many of the latest checkpoints are kept in addition to the best one; with two of them, a
            damaged one has a predecessor; default 2
        every_n_steps: write also inside an epoch, every so many optimizer steps; default None
        sharded: whether each process writes its part of sharded weights, instead of the first one all of
            them; default False
        settings: the configuration of the run, which manifests keep; default None

    Attributes:
        since_best: Validations since one that was better than all before.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        tie_break: str | None = None,
        keep: int = 2,
        every_n_steps: int | None = None,
        sharded: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        check_integer("keep", keep)
        if every_n_steps is not None:
            check_integer("every_n_steps", every_n_steps)
        self.folder = Path(folder).absolute()
        self.monitor = monitor
        self.mode = mode
        self.tie_break = tie_break
        self.keep = keep
        self.every_n_steps = every_n_steps
        self.sharded = sharded
        self.settings = settings
        self.signals = StopSignals()
        self.best_score: float | None = None
        self.best_tie = math.inf
        self.since_best = 0
        self.best: str | None = None
        self._written: list[str] = []
        self._improved = False
        self._last_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint is best, by what score and since when, and which ones stand."""
        return {
            "best_score": self.best_score,
            "best_tie": self.best_tie,
            "since_best": self.since_best,
            "monitor": self.monitor,
            "best": self.best,
            "written": list(self._written),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on comparing with the best of the run that is resumed."""
        self.best, self._written = state["best"], list(state["written"])
        # version 0.1 chose by one value alone
        before = state.get("monitor", "val/objective")
        if before == self.monitor:
            self.best_score, self.best_tie = state["best_score"], state.get("best_tie", math.inf)
            self.since_best = state.get("since_best", 0)
        elif self.monitor is not None:
            logger.warning(
                "the best checkpoint was chosen by %s, from now on by %s: the best so far is forgotten",
                before,
                self.monitor,
            )

    def resume_at(self, step: int) -> None:
        """Count the steps between checkpoints from this one."""
        self._last_step = step

    def compare(self, metrics: Mapping[str, float]) -> None:
        """Compare a validation with the best one so far.

        Raises:
            ValueError: if the validation did not measure what decides
        """
        if self.monitor is None:
            return
        for name in filter(None, (self.monitor, self.tie_break)):
            if name not in metrics:
                logged = ", ".join(sorted(metrics)) or "nothing"
                raise ValueError(f"the best checkpoint is chosen by {name!r}, but validation logged {logged}")
        score, tie = metrics[self.monitor], metrics[self.tie_break] if self.tie_break else 0.0
        tie = tie if math.isfinite(tie) else math.inf
        sign = 1 if self.mode == "min" else -1
        best_score = math.inf if self.best_score is None else sign * self.best_score
        rank, best = (sign * score, tie), (best_score, self.best_tie)
        if math.isfinite(score) and rank <= best:
            self.best_score, self.best_tie, self._improved = score, tie, True
        self.since_best = 0 if math.isfinite(score) and rank < best else self.since_best + 1

    def due(self, step: int) -> bool:
        """Return whether a checkpoint inside an epoch is to be written after a step, unless a signal asks."""
        return self._improved or (
            self.every_n_steps is not None and step - self._last_step >= self.every_n_steps
        )

    def save(
        self,
        fabric: Fabric,
        weights: Mapping[str, Tensor],
        state: Callable[[], dict[str, Any]],
        *,
        epoch: int,
        batch: int | None,
        step: int,
        signum: int = 0,
    ) -> None:
        """Write a checkpoint, remove those that are not kept, and stop if a signal asked for it.

        Args:
            fabric: the processes; all of them take part
            weights: what is trained, weights and buffers by name, which must be finite
            state: gives what is written, in which tensors may be sharded
            epoch: whole epochs done
            batch: batches done in the next one; None at the end of an epoch
            step: optimizer steps done
            signum: the signal that asked for it, or 0

        Raises:
            NonFiniteError: if weights are not finite; nothing is written
            Interrupted: after a signal
            ValueError: if checkpoints shall be sharded, and the weights are not
        """
        begun = epoch if batch is not None else epoch - 1
        check_finite(
            fabric,
            weights,
            f"weights are not finite after step {step} (epoch {begun}), no checkpoint of them was written; "
            f"of the checkpoints {self.latest()}",
        )
        name = checkpoint_name(epoch, batch)
        if self._improved:
            self.best = name
        written = [*(other for other in self._written if other != name), name]
        kept = {*written[-self.keep :], self.best}
        self._written = [other for other in written if other in kept]
        self._write(fabric, state(), self.folder / name)
        if fabric.is_global_zero:
            self._link("last", name)
            if self._improved:
                self._link("best", name)
            for other in written:
                if other not in kept and (self.folder / other).exists():
                    remove_checkpoint(self.folder / other)
        fabric.barrier()
        self._improved = False
        self._last_step = step
        if signum:
            raise Interrupted(signum, str(self.folder / name))

    def _write(self, fabric: Fabric, state: dict[str, Any], path: Path) -> None:
        if not self.sharded:
            state = gathered(state)
            if fabric.is_global_zero:
                write_checkpoint(state, path, settings=self.settings)
            return
        whole, shards = split(state)
        if not shards:
            raise ValueError("a checkpoint can be sharded if the weights are, by strategy 'fsdp'")
        write = partial(write_shards, fabric, shards)
        if fabric.is_global_zero:
            write_checkpoint(whole, path, write_shards=write, settings=self.settings)
        else:
            write(None)

    def latest(self) -> str:
        """Say which checkpoint is the latest."""
        return f"the latest is {self.folder / self._written[-1]}" if self._written else "there is none yet"

    def _link(self, link: str, name: str) -> None:
        temporary = self.folder / f".{link}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name, target_is_directory=True)
        place = self.folder / link
        if place.is_dir() and not place.is_symlink():
            # in a copy of the run that was made without links
            shutil.rmtree(place)
        temporary.replace(place)
