"""What a time is enough for: a run's epochs and its model's size, by what is measured on this machine."""

from __future__ import annotations

import math
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vit_pytorch.data import ImageData, Splits
from vit_pytorch.training.callbacks import Callback
from vit_pytorch.training.config import TrainConfig
from vit_pytorch.training.engine import make_fabric
from vit_pytorch.training.keeper import Checkpoints
from vit_pytorch.training.loop import Loop
from vit_pytorch.training.problems import problem_of
from vit_pytorch.training.progress import duration
from vit_pytorch.training.run import build_model, image_data, make_task
from vit_pytorch.training.start import open_splits, quieten

# of plain models, small to large: width and depth; heads are 32 wide, and an MLP widens twice
SIZES = ((64, 4), (96, 6), (128, 6), (192, 8), (256, 10))
# a model is too large that sees its images less often, and images that are seen more often teach no more
FEWEST, MOST = 10, 200
# batches that come first: workers have prepared some, and kernels are chosen
WARMUP, MEASURED = 8, 24
SECONDS = 6.0
# that pictures, summary and model take when training has ended
REPORT = 8.0


class _EnoughError(Exception):
    """Enough was measured."""


class _Clock(Callback):
    """Notes when batches end, from now on, and ends the training, or the validation, when enough have."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]
        self.epochs: list[float] = []

    def on_epoch_end(self, *_: Any) -> None:
        """Note an epoch."""
        self.epochs.append(time.perf_counter())

    def on_validation_batch_end(self, *_: Any) -> None:
        """Note a batch of validation."""
        self.on_batch_end()

    def on_batch_end(self, *_: Any) -> None:
        """Note a batch of training."""
        self.ends.append(time.perf_counter())
        passed = len(self.ends) - 1 - WARMUP
        if passed >= MEASURED or (passed >= 3 and self.ends[-1] - self.ends[WARMUP] > SECONDS):
            raise _EnoughError

    @property
    def batch(self) -> float:
        """Seconds of a batch; of few batches, with those that come first."""
        first = WARMUP if len(self.ends) > WARMUP + 3 else 0
        return (self.ends[-1] - self.ends[first]) / max(1, len(self.ends) - 1 - first)

    @property
    def epoch(self) -> float | None:
        """Seconds of an epoch with its validation and its checkpoint; None where no two were finished."""
        whole = len(self.epochs) - 1
        return (self.epochs[-1] - self.epochs[0]) / whole if whole >= 2 else None


@dataclass(frozen=True)
class Rates:
    """What parts of a run take, in seconds.

    Args:
        epoch: Training on all images once, and validating.
        ending: What comes when training has ended.
    """

    epoch: float
    ending: float


def seconds_of(text: str) -> float:
    """Read a time such as ``10m``, ``1h30m`` or ``90s``.

    Raises:
        ValueError: If it is none, or is no time at all.
    """
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.strip().lower())
    try:
        values = [float(part or 0) for part in parts.groups()] if parts else []
    except ValueError:
        values = []
    seconds = sum(value * unit for value, unit in zip(values, (3600, 60, 1), strict=False))
    if not 0 < seconds < math.inf:
        raise ValueError(f"budget must be a time such as 10m, 1h30m or 90s, got {text!r}")
    return seconds


def fit_budget(config: TrainConfig, budget: str, *, sized: bool) -> TrainConfig:
    """Choose the epochs of a run, and the size of its model, for a time.

    Some batches are trained and validated first, with the run's own data, loader and engine, and thrown away.
    The largest model is taken that sees its images at least ten times; more than two hundred times none
    does. The warm-up keeps its share of the epochs.

    Args:
        config: What to train, on what, and how.
        budget: The time of the whole run, from here on; see `seconds_of`.
        sized: Whether the model's width and depth may be chosen.

    Returns:
        The configuration with its epochs and its model.

    Raises:
        ValueError: If the time is not enough for one epoch, if there are several processes, or if the data
            have no length.
    """
    quieten()
    began, allowed = time.perf_counter(), seconds_of(budget)
    if config.processes > 1:
        raise ValueError("budget is measured in one process: give devices and num_nodes, or a budget")
    splits = open_splits(config)
    if not splits.train.listed:
        raise ValueError("budget needs data of known length; give epochs and data.epoch_samples of a stream")
    config = config.with_batches_for(len(splits.train))
    chosen: tuple[TrainConfig, int, Rates] | None = None
    # once for all sizes of the model: small images are read when they are first asked for
    data = image_data(config, splits, build_model(config, splits))
    for candidate in _sizes(config) if sized else [config]:
        rates = measure(candidate, splits, data)
        left = allowed - (time.perf_counter() - began) - rates.ending
        epochs = int(left / rates.epoch)
        if chosen is not None and epochs < FEWEST:
            break
        chosen = candidate, epochs, rates
        if epochs < FEWEST:
            break
    assert chosen is not None
    config, epochs, rates = chosen
    if epochs < 1:
        raise ValueError(
            f"a budget of {budget} is not enough: an epoch takes {duration(rates.epoch)}, "
            f"what comes after the last one {duration(rates.ending)}"
        )
    epochs = min(epochs, MOST)
    warmup = config.schedule.warmup_epochs * min(1.0, epochs / config.epochs)
    passed = time.perf_counter() - began
    print(
        f"budget {budget}: an epoch takes {duration(rates.epoch)}, so {epochs} epochs, in all about "
        f"{duration(passed + epochs * rates.epoch + rates.ending)}",
        flush=True,
    )
    schedule = replace(config.schedule, warmup_epochs=warmup)
    return replace(config, epochs=epochs, schedule=schedule)


def _sizes(config: TrainConfig) -> list[TrainConfig]:
    """Return a configuration with its model in all sizes, small to large."""
    return [
        replace(
            config,
            model=dict(config.model)
            | {"dim": dim, "depth": depth, "heads": dim // 32, "dim_head": 32, "mlp_dim": 2 * dim},
        )
        for dim, depth in SIZES
    ]


def measure(config: TrainConfig, splits: Splits, data: ImageData) -> Rates:
    """Train and validate some batches of a run, and return what its parts will take."""
    model = build_model(config, splits)
    task = make_task(config, model, problem_of(splits), data.preprocessing, splits)
    fabric = make_fabric(accelerator=config.accelerator, precision=config.precision)
    fabric.launch()
    with TemporaryDirectory() as folder:
        loop = Loop(
            fabric,
            task,
            data,
            checkpoints=Checkpoints(Path(folder) / "checkpoints"),
            epochs=config.epochs,
            accumulate=config.accumulate,
            clip=config.clip,
            ema=config.ema,
            compiled=config.compile,
            activation_checkpointing=config.activation_checkpointing,
        )
        loop.callbacks = [training := _Clock()]
        with suppress(_EnoughError):
            loop.run()
        loop.callbacks = [validation := _Clock()]
        with suppress(_EnoughError):
            loop.validate()
    evaluated = {"val": len(splits.val), "test": 0 if splits.test is None else len(splits.test)}
    image = validation.batch / config.device_batch_size
    return Rates(
        epoch=training.epoch or loop.epoch_batches * training.batch + evaluated["val"] * image,
        ending=sum(evaluated.values()) * image + REPORT,
    )
