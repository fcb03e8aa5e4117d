"""Callbacks that keep a training safe: exact resume, checkpoints at the right moments."""

import logging
import math
import os
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from torch.distributed.tensor import DTensor

from vit_pytorch.training.checkpoints import checkpoint_name
from vit_pytorch.training.finite import NonFiniteError
from vit_pytorch.training.random_state import branch_random_state, get_random_state, set_random_state
from vit_pytorch.training.signals import Interrupted, StopSignals

logger = logging.getLogger(__name__)


def _fetcher(trainer: L.Trainer) -> _DataFetcher:
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return fetcher


def _validation_follows(trainer: L.Trainer) -> bool:
    return trainer.fit_loop.epoch_loop._should_check_val_fx(_fetcher(trainer))


class ExactResume(Callback):
    """Makes a resumed training draw the very random numbers that the uninterrupted one would have drawn.

    The states of all processes' generators are part of the checkpoint. They are put back at the last moment
    before the next batch is drawn: inside an epoch when training starts, between two epochs when the new one
    starts. Validation leaves the generators as it found them, so that training does not depend on how often
    it runs.
    """

    def __init__(self) -> None:
        self._saved: list[dict[str, Any]] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Collect the generators' states of all processes."""
        states: list[Any] = [get_random_state()]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, get_random_state())
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states until training starts."""
        self._saved = checkpoint["random_states"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on inside an epoch."""
        if self._saved is not None and trainer.fit_loop.restarting:
            if self._load_loader_states(trainer):
                iter(_fetcher(trainer))
            self._restore(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with a new epoch, whose iterator Lightning made before it told the sampler the epoch."""
        if self._saved is not None:
            self._load_loader_states(trainer)
            for loader in _fetcher(trainer).combined_loader.flattened:
                _set_sampler_epoch(loader, trainer.current_epoch)
            self._restore(trainer)
            iter(_fetcher(trainer))

    def _load_loader_states(self, trainer: L.Trainer) -> bool:
        """Load what Lightning leaves aside between epochs, or when the length was asked for early."""
        loop = trainer.fit_loop
        states, loop._combined_loader_states_to_load = loop._combined_loader_states_to_load, []
        if states:
            _fetcher(trainer).combined_loader._load_state_dicts(states)
        return bool(states)

    def _restore(self, trainer: L.Trainer) -> None:
        states, self._saved = self._saved, None
        assert states is not None
        if len(states) == trainer.world_size:
            set_random_state(states[trainer.global_rank])
        else:
            logger.warning(
                "the checkpoint was written by %d processes and %d resume it: dropout and augmentation go on "
                "with other random numbers",
                len(states),
                trainer.world_size,
            )
            branch_random_state(states[0], trainer.global_rank)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the state before the sanity check."""
        self._before_validation = get_random_state()

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put it back."""
        self._end_validation()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Note the state before a validation, whose iterator Lightning makes ahead of its first hook."""
        if _validation_follows(trainer):
            self._before_validation = get_random_state()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put it back."""
        if not trainer.sanity_checking:
            self._end_validation()

    def _end_validation(self) -> None:
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None


class Checkpoints(Checkpoint):
    """Writes checkpoints at moments from which training resumes exactly, and obeys signals to stop there.

    These moments are: the end of an epoch, after its validation; after an optimizer step that no validation
    follows; the end of a validation inside an epoch. In `folder`, the links ``last`` and ``best`` point to
    the latest checkpoint and to the one with the best validation, the later one of equals.

    Args:
        folder: Where checkpoints are written.
        monitor: Name of the logged value that decides which checkpoint is best; None where none is best.
        mode: Whether the least (``min``) or the greatest (``max``) value is best.
        keep: How many of the latest checkpoints are kept beside the best one; with two of them, a damaged one
            has a predecessor.
        every_n_steps: Write also inside an epoch, every so many optimizer steps.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        keep: int = 2,
        every_n_steps: int | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder = Path(folder).absolute()
        self.monitor = monitor
        self.mode = mode
        self.keep = keep
        self.every_n_steps = every_n_steps
        self.signals = StopSignals()
        self.best_score: float | None = None
        self.best: str | None = None
        self._written: list[str] = []
        self._improved = False
        self._last_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoint is best, by what score, and which ones stand."""
        return {"best_score": self.best_score, "best": self.best, "written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with the best of the run that is resumed."""
        self.best_score, self.best = state_dict["best_score"], state_dict["best"]
        self._written = list(state_dict["written"])

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals."""
        self.signals.install()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals; count steps from here."""
        self.signals.install()
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save after an optimizer step, if it is time and no validation or end of an epoch follows."""
        if (
            trainer.fit_loop._should_accumulate()
            or self._is_last_batch(trainer)
            or _validation_follows(trainer)
        ):
            return
        self._save_inside_epoch(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best; inside an epoch, save if it is time."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor is not None:
            self._compare(trainer, self.monitor)
        if not self._is_last_batch(trainer) and not trainer.fit_loop._should_accumulate():
            self._save_inside_epoch(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of every epoch."""
        signum = self.signals.agreed(trainer)
        self._save(trainer, checkpoint_name(trainer.current_epoch + 1), signum)

    def _is_last_batch(self, trainer: L.Trainer) -> bool:
        return trainer.fit_loop.epoch_loop._num_ready_batches_reached()

    def _save_inside_epoch(self, trainer: L.Trainer) -> None:
        signum = self.signals.agreed(trainer)
        due = self.every_n_steps is not None and trainer.global_step - self._last_step >= self.every_n_steps
        if signum or due or self._improved:
            self._save(
                trainer, checkpoint_name(trainer.current_epoch, trainer.fit_loop.batch_idx + 1), signum
            )

    def _compare(self, trainer: L.Trainer, monitor: str) -> None:
        if monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(f"the best checkpoint is chosen by {monitor!r}, but validation logged {logged}")
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[monitor]))
        if not math.isfinite(score):
            return
        better = self.best_score is None or (
            score <= self.best_score if self.mode == "min" else score >= self.best_score
        )
        if better:
            self.best_score, self._improved = score, True

    def _save(self, trainer: L.Trainer, name: str, signum: int) -> None:
        self._check_weights(trainer)
        if self._improved:
            self.best = name
        written = [*(other for other in self._written if other != name), name]
        kept = {*written[-self.keep :], self.best}
        self._written = [other for other in written if other in kept]
        trainer.save_checkpoint(self.folder / name, weights_only=False)
        if trainer.is_global_zero:
            self._link("last", name)
            if self._improved:
                self._link("best", name)
            for other in written:
                if other not in kept and (self.folder / other).exists():
                    trainer.strategy.remove_checkpoint(self.folder / other)
        self._improved = False
        self._last_step = trainer.global_step
        if signum:
            raise Interrupted(signum, str(self.folder / name))

    def _check_weights(self, trainer: L.Trainer) -> None:
        bad = [
            name
            for name, parameter in trainer.lightning_module.named_parameters()
            if not torch.isfinite(parameter.to_local() if isinstance(parameter, DTensor) else parameter).all()
        ]
        if not trainer.strategy.reduce_boolean_decision(not bad, all=True):
            raise NonFiniteError(
                f"weights are not finite after step {trainer.global_step} (epoch {trainer.current_epoch}): "
                f"{', '.join(bad[:3])}; no checkpoint of them was written. Of the checkpoints {self.latest()}"
            )

    def latest(self) -> str:
        """Say which checkpoint is the latest."""
        return f"the latest is {self.folder / self._written[-1]}" if self._written else "there is none yet"

    def _link(self, link: str, name: str) -> None:
        temporary = self.folder / f".{link}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name, target_is_directory=True)
        temporary.replace(self.folder / link)
