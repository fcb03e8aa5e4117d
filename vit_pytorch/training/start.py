"""How a run starts: its engine, its data, its processes, its folder."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import torch
from lightning.fabric import Fabric, seed_everything

import vit_pytorch
from vit_pytorch.data import ImageRecord, Splits, open_data, read_record
from vit_pytorch.data.record import RECORD
from vit_pytorch.training.checkpoints import Checkpoint
from vit_pytorch.training.config import CONFIG, RunConfig, TrainConfig, check_resumable
from vit_pytorch.training.engine import is_first_process, make_fabric
from vit_pytorch.training.history import LINES, METRICS, read_lines, read_rows
from vit_pytorch.training.loggers import logger_names
from vit_pytorch.training.peers import launch
from vit_pytorch.training.runs import (
    check_creatable,
    check_run,
    check_writable,
    find_checkpoint,
    hold_run,
    start_run,
)
from vit_pytorch.training.summary import check_unfinished


def prepare(
    config: RunConfig, folder: Path, held: ExitStack, *, numbered: bool, resume: bool
) -> tuple[Fabric, Checkpoint | None, Splits]:
    """Build the engine, find the checkpoint to resume from, open the data, seed the generators; see `run`.

    Args:
        held: keeps the folder of a run that is resumed locked
    """
    quieten()
    _check_names({"data": config.data.source, "output folder": str(folder.absolute())})
    logger_names(config.logger)
    fabric = make_fabric(
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        accelerator=config.accelerator,
        precision=config.precision,
        timeout=timedelta(seconds=config.process_timeout),
    )
    checkpoint = None
    if resume:
        check_run(folder)
        if is_first_process():
            held.enter_context(hold_run(folder))
        checkpoint = find_checkpoint(folder)
        check_resumable(config, folder / CONFIG, checkpoint.settings)
        for name, read in ((METRICS, read_rows), (LINES, read_lines)):
            if (folder / name).exists():
                read(folder / name)
        check_unfinished(folder, done=checkpoint.epoch + 1, epochs=config.epochs)
    else:
        # of several processes one would take away what another writes to
        check = check_creatable if config.processes == 1 else check_writable
        check(folder.parent if numbered else folder)
    if is_first_process():
        engine = f"torch {torch.__version__}, {fabric.device.type} x {config.processes}, {config.precision}"
        print(f"vit    {vit_pytorch.__version__}, {engine}; reading {config.data.source}", flush=True)
    splits = open_splits(config, _recorded(folder) if checkpoint is not None else None)
    seed_everything(config.seed, verbose=False)
    return fabric, checkpoint, splits


def _check_names(names: Mapping[str, str]) -> None:
    """Check that names, by what they are names of, can be written into a run's files, which are UTF-8."""
    for what, name in names.items():
        # bytes of a path that are no UTF-8 are surrogates
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise ValueError(f"the name of the {what} must be UTF-8, got {os.fsencode(name)!r}: rename it")


def create_run_dir(fabric: Fabric, folder: Path, held: ExitStack, *, numbered: bool, resume: bool) -> Path:
    """Start the processes, and let the first one take the run's folder.

    Args:
        held: keeps the folder of a new run locked

    Raises:
        OSError: if the folder cannot be taken; the other processes leave
    """
    launch(fabric)
    taken: Path | OSError | None = None
    if fabric.is_global_zero:
        try:
            taken = folder.absolute() if resume else held.enter_context(start_run(folder, numbered=numbered))
        except OSError as error:
            taken = error
    # without an answer the others would wait for the first process, which has left
    taken = fabric.broadcast(taken)
    if isinstance(taken, Path):
        return taken
    assert taken is not None
    raise taken if fabric.is_global_zero else SystemExit(0)


def recorded_images(folder: Path) -> ImageRecord | None:
    """Read what images a run began with; None for runs of 0.1, which have no list of them."""
    return read_record(folder / RECORD) if (folder / RECORD).exists() else None


def _recorded(folder: Path) -> ImageRecord | None:
    """Read what images a run began with, which decides its splits; say so if that is not known."""
    record = recorded_images(folder)
    if record is None:
        print(f"data   {folder} has no {RECORD}: whether its images have changed is not known", flush=True)
    return record


def open_splits(config: RunConfig, record: ImageRecord | None = None) -> Splits:
    """Open a configuration's data, in the splits that a run has recorded."""
    return open_data(
        config.data.spec,
        seed=config.split_seed,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        record=record,
        changed=config.data.changed,
        unlabelled=not config.needs_labels,
        stream=config.data.stream,
        task=config.task if isinstance(config, TrainConfig) else "classify",
    )


def quieten() -> None:
    """Leave out what Lightning says about itself; warnings stay, but for one without use here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # about 1 x 1 convolutions on channels-last images, whose gradients have strides of their own for the same
    # order in memory
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
