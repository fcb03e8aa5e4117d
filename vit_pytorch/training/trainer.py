"""Putting a training together: a ``Trainer`` whose runs can be stopped, resumed and trusted."""

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vit_pytorch.training.callbacks import Checkpoints, ExactResume
from vit_pytorch.training.checkpoint_io import FolderCheckpointIO
from vit_pytorch.training.checkpoints import Checkpoint
from vit_pytorch.training.finite import FiniteGuard
from vit_pytorch.training.signals import Interrupted
from vit_pytorch.training.strategies import StrategyName, make_strategy


def make_trainer(
    checkpoint_folder: str | os.PathLike[str],
    *,
    max_epochs: int,
    devices: int = 1,
    strategy: StrategyName = "auto",
    accelerator: str = "auto",
    timeout: timedelta = timedelta(minutes=10),
    monitor: str | None = "val/loss",
    mode: Literal["min", "max"] = "min",
    every_n_steps: int | None = None,
    keep: int = 2,
    on_nonfinite: Literal["stop", "skip"] = "stop",
    ema_decay: float | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    **options: Any,
) -> L.Trainer:
    """Build a Lightning ``Trainer`` with atomic checkpoints, exact resume, signals and the guard against NaN.

    Args:
        checkpoint_folder: Where checkpoints are written.
        max_epochs: Length of the training.
        devices: Number of processes on this machine.
        strategy: See :func:`make_strategy`.
        accelerator: As in ``Trainer``.
        timeout: How long a process waits for the others.
        monitor: See :class:`Checkpoints`; so are `mode`, `every_n_steps` and `keep`.
        mode: Whether the least or the greatest value is best.
        every_n_steps: Write a checkpoint also every so many steps.
        keep: How many of the latest checkpoints are kept.
        on_nonfinite: See :class:`FiniteGuard`.
        ema_decay: Decay of an exponential moving average of the weights and of batch norm's statistics (see
            :func:`average`), which validation and checkpoints then use.
        callbacks: More callbacks.
        loggers: Where metrics go.
        options: Any other argument of ``Trainer``, such as ``precision``, ``accumulate_grad_batches``,
            ``gradient_clip_val``.

    Returns:
        The trainer; hand it to :func:`fit`.
    """
    own: list[Callback] = [
        ExactResume(),
        FiniteGuard(on_nonfinite),
        Checkpoints(checkpoint_folder, monitor=monitor, mode=mode, keep=keep, every_n_steps=every_n_steps),
    ]
    if ema_decay is not None:
        if strategy == "fsdp":
            raise ValueError(
                "ema_decay needs whole weights in every process, which strategy 'fsdp' does not have"
            )
        if not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay must be in (0, 1), got {ema_decay}")
        own.append(WeightAveraging(use_buffers=True, multi_avg_fn=partial(average, decay=ema_decay)))
    return L.Trainer(
        max_epochs=max_epochs,
        devices=devices,
        strategy=make_strategy(strategy, devices=devices, timeout=timeout),
        accelerator=accelerator,
        callbacks=[*callbacks, *own],
        logger=list(loggers),
        plugins=[FolderCheckpointIO()],
        use_distributed_sampler=False,
        default_root_dir=Path(checkpoint_folder).parent,
        **options,
    )


def average(
    averaged: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor | int, *, decay: float
) -> None:
    """Move an exponential moving average one step, in place; integers, such as counters, are taken over.

    Args:
        averaged: The averages so far, of one dtype and device.
        current: What is averaged, in the same order.
        steps: How many steps the average has seen. The first of them have a smaller decay, so that a short
            training is not held back by its start: at most ``(1 + steps) / (10 + steps)``.
        decay: Weight of the average so far.
    """
    if averaged[0].is_floating_point():
        seen = float(steps)
        move = get_ema_multi_avg_fn(min(decay, (1 + seen) / (10 + seen)))
        move(averaged, current, steps)
    else:
        for mean, value in zip(averaged, current, strict=True):
            mean.copy_(value)


def fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: L.LightningDataModule,
    *,
    ckpt_path: str | os.PathLike[str] | None = None,
) -> None:
    """Train; stop with a checkpoint and the right exit status when a signal asks for it.

    On SIGTERM or Ctrl-C the current step is finished (at the end of an epoch, or inside a validation, that
    validation too), a checkpoint is written, and the process leaves. A second signal acts at once.

    Args:
        trainer: From :func:`make_trainer`.
        module: What to train.
        data: What to train it on. Its training loader should have ``state_dict`` and ``load_state_dict``.
        ckpt_path: The checkpoint to go on from, or its folder.

    Raises:
        SystemExit: With status 143 after SIGTERM, 130 after Ctrl-C.
        ValueError: If the trainer lacks this package's checkpoints, or its length is given in steps.
    """
    checkpoints = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]
    io = trainer.strategy.checkpoint_io
    if len(checkpoints) != 1 or not isinstance(io, FolderCheckpointIO):
        raise ValueError(
            "fit() needs a trainer from make_trainer(), with one Checkpoints and FolderCheckpointIO"
        )
    if trainer.max_steps != -1:
        raise ValueError(f"a training's length is given by max_epochs, but max_steps is {trainer.max_steps}")
    path = None if ckpt_path is None else os.fspath(ckpt_path)
    io.verified = ckpt_path if isinstance(ckpt_path, Checkpoint) else None
    try:
        with checkpoints[0].signals:
            trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    except Interrupted as stop:
        if trainer.is_global_zero:
            print(stop, file=sys.stderr)
        # Lightning kills the first process as soon as it sees another one leave with a failure
        raise SystemExit(stop.exit_status if trainer.is_global_zero else 0) from None
    except SystemExit as leave:
        if isinstance(leave.__context__, KeyboardInterrupt):
            print(f"interrupted at once; of the checkpoints {checkpoints[0].latest()}", file=sys.stderr)
            raise SystemExit(130) from None
        raise
