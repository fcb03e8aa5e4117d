"""Loggers of other tools: TensorBoard, CSV files, Weights & Biases, MLflow; by Lightning's own classes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

# names, and the packages that they need
LOGGERS = {"tensorboard": "tensorboard", "csv": None, "wandb": "wandb", "mlflow": "mlflow"}


def logger_names(names: str) -> list[str]:
    """Split names of loggers, separated by commas; `none` is no logger.

    Raises:
        ValueError: if one is unknown, or needs a package that is not installed
    """
    found = [name.strip() for name in names.split(",") if name.strip() not in ("", "none")]
    for name in found:
        if name not in LOGGERS:
            raise ValueError(f"a logger is one of {', '.join(LOGGERS)}, got {name!r}")
        package = LOGGERS[name]
        if package is not None and find_spec(package) is None:
            raise ValueError(f"logger {name!r} needs one more package: pip install {package}")
    return found


def make_loggers(names: str, folder: Path) -> list[Logger]:
    """Build the loggers of a run; they write to its folder, W&B and MLflow where their environment says.

    Args:
        names: see `logger_names`
        folder: the run's folder, whose name is the run's name
    """
    return [_make(name, folder) for name in logger_names(names)]


def _make(name: str, folder: Path) -> Logger:
    if name == "tensorboard":
        from lightning.fabric.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard")
    if name == "csv":
        from lightning.fabric.loggers import CSVLogger

        # a logger deletes what an earlier one of the same version left
        number = len(list(folder.glob("csv*")))
        version = f"csv-{number + 1}" if number else "csv"
        return CSVLogger(folder, name="", version=version, flush_logs_every_n_steps=1)
    if name == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(
            name=folder.name, id=folder.name, save_dir=folder, project="vit_pytorch", resume="allow"
        )
    from lightning.pytorch.loggers import MLFlowLogger

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    options: dict[str, Any] = {"tracking_uri": uri} if uri else {"save_dir": str(folder / "mlflow")}
    return MLFlowLogger(experiment_name="vit_pytorch", run_name=folder.name, **options)
