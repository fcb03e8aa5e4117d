"""Training in Python by the settings of the `vit` command: `fit`, and the run that it returns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.cli.layers import long_options
from vit_pytorch.cli.train import STARTING, carry_out, read_command, resumed_run
from vit_pytorch.cli.use import evaluation_loader, measure_run
from vit_pytorch.create import create_model
from vit_pytorch.training.evaluation import Evaluation
from vit_pytorch.training.predictor import Predictor
from vit_pytorch.training.summary import SUMMARY

# settings that are text whatever they look like
PATHS = ("data", "output", "config", "recipe", "resume")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: the run's folder
    """

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """What the run's `summary.json` says."""
        summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
        return summary

    @property
    def model(self) -> VisionModel:
        """The run's best weights, in eval mode."""
        return create_model(self.folder)

    def evaluate(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        split: Literal["test", "val", "train", "all"] = "test",
        batch_size: int = 64,
        workers: int = 0,
    ) -> Evaluation:
        """Measure the best weights, as `vit evaluate` does.

        Args:
            data: other data than the run's own, as for `fit`; whole, if they do not split themselves
            split: which images; `all` takes every split
            batch_size: images that are seen at once
            workers: processes that load images

        Raises:
            ValueError: if the data have no such split, other classes, or have changed since the run
        """
        load = partial(evaluation_loader, batch_size=batch_size, workers=workers, on_bad="stop")
        source = None if data is None else _text("data", data)
        return measure_run(self.folder, source, split, load, "stop")[0]

    def predictor(self, **options: Any) -> Predictor:
        """Return a `Predictor` of the best weights, with its options."""
        return Predictor(self.folder, **options)


def fit(data: str | os.PathLike[str] | None = None, **settings: Any) -> Run:
    """Train as `vit train` does, and return the run.

    `fit("photos/", recipe="light", epochs=20, lr=5e-4).predictor()("x.jpg")` trains, and says what an image
    shows.

    Args:
        data: what is trained on, as for `vit train --data`; default scikit-learn's digits
        settings: options of `vit train` under their names, such as `recipe`, `config`, `output`, `resume` or
            `task`; sections are mappings, `optimizer={"lr": 5e-4}`. None for one of the first four leaves it
            out

    Raises:
        FileExistsError: if `output` holds a run already
        OSError: if data or folder cannot be read or written
        SystemExit: after SIGTERM or Ctrl-C, when a checkpoint is written
        ValueError: if a setting does not exist or is out of range, the data are not what they should be, or
            `devices` is above 1 in a program that neither torchrun nor SLURM started
    """
    if data is not None:
        # `data={...}` would give it twice, hence the name in full
        settings = {"data.source": _text("data", data), **settings}
    arguments = long_options([f"--{name}={text}" for name, text in _options(settings)])
    resumed = resumed_run(arguments)
    config, output = read_command(arguments, resumed)
    # heavy, and not needed to find a mistake in the settings
    from vit_pytorch.training.engine import starts_processes, wait_for_others

    if starts_processes(config.devices):
        raise ValueError(
            f"fit trains in one process, and devices={config.devices} would start this program again: start "
            f"it by torchrun --nproc-per-node {config.devices}, or train by `vit train`"
        )
    folder = carry_out(config, output, resumed)
    wait_for_others()
    return Run(folder)


def _options(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and values of options, those of sections by their full names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _options(value, f"{prefix}{name}.")
        elif value is not None or name not in STARTING:
            # one of these is left out: the command has no word for none of it
            yield f"{prefix}{name}", _text(f"{prefix}{name}", value)


def _text(name: str, value: Any) -> str:
    """Return a setting as the command line takes it.

    Raises:
        ValueError: if it is nothing that can be written there
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if name in PATHS:
        raise ValueError(f"{name} must be a path or a name, got {type(value).__name__}")
    try:
        return json.dumps(value, default=_as_plain)
    except TypeError as error:
        raise ValueError(
            f"{name} must be text, a path, a number, True, False, None, a list or a mapping, got {error}"
        ) from error


def _as_plain(value: Any) -> Any:
    """Return paths as text, and arrays and their numbers as Python's own."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    raise TypeError(type(value).__name__)
