"""The summary of a run, for machines and for people."""

import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vit_pytorch
from vit_pytorch.base import CONFIG_NAME
from vit_pytorch.create import MODEL
from vit_pytorch.storage import write_file
from vit_pytorch.training.config import RunConfig, TrainConfig
from vit_pytorch.training.evaluation import Evaluation, Table
from vit_pytorch.training.history import Row

SUMMARY = "summary.json"
PAGE = "summary.md"
SELECTED = {
    "accuracy": "accuracy (of equal ones, by loss)",
    "map": "mean average precision (of equal ones, by loss)",
    "f1": "F1 (of equal ones, by loss)",
    "mae": "mean absolute error",
    "loss": "loss",
}
# the course, in every run
COURSE = "curves.png"
# the pictures of a classifier's run, in those whose summary names none
PICTURES = (COURSE, "confusion.png", "wrong.png")


def summarize(
    config: TrainConfig,
    model: nn.Module,
    results: Mapping[str, Evaluation],
    rows: Sequence[Row],
    *,
    best: str,
    sizes: Mapping[str, int],
    skipped: Mapping[str, str],
    pictures: Sequence[str],
    kind: str = "image",
) -> dict[str, Any]:
    """Collect what a run gave.

    Args:
        config: Its configuration.
        model: The model.
        results: What the best weights reach, by split.
        rows: The course of the training.
        best: Name of the best checkpoint.
        sizes: Images in each split.
        skipped: Images that could not be decoded, with the reason.
        pictures: Names of the pictures in the run's folder.
        kind: What the images are, where they are videos or volumes.
    """
    return {
        **describe_run(config, model, rows, sizes=sizes, skipped=skipped),
        "task": config.task,
        "kind": kind,
        "best_checkpoint": best,
        "selected_by": config.selected_by,
        "pictures": list(pictures),
        **{split: result.as_dict() for split, result in results.items()},
    }


def describe_run(
    config: RunConfig,
    model: nn.Module,
    rows: Sequence[Row],
    *,
    sizes: Mapping[str, int],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Collect what every run has to tell, whatever it learned; see `summarize`."""
    return {
        "data": config.data.source,
        "model": config.model["name"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": config.seed,
        "split_seed": config.split_seed,
        "images": dict(sizes),
        "skipped_images": dict(skipped),
        "epochs": int(rows[-1]["epoch"]),
        "planned_epochs": config.epochs,
        "training_seconds": rows[-1]["seconds"],
        "versions": {
            "vit_pytorch": vit_pytorch.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": version("lightning"),
        },
        "threads": torch.get_num_threads(),
        "optimizer": asdict(config.optimizer),
    }


def write_page(summary: Mapping[str, Any], page: str, folder: Path) -> None:
    """Write the words of a summary as `summary.md`, then the summary, with which a run has finished, as
    `summary.json`."""
    write_file(folder / PAGE, page)
    write_file(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")


def reported_epochs(folder: Path) -> int:
    """Return after how many epochs a run has reported; 0 if a part of the report is missing."""
    file = folder / SUMMARY
    if not file.exists():
        return 0
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        epochs = int(summary["epochs"])
    except (KeyError, TypeError, ValueError) as error:
        warnings.warn(f"{file} is damaged ({error}) and will be written again", stacklevel=2)
        return 0
    pictures = summary.get("pictures", PICTURES if "best_checkpoint" in summary else [COURSE])
    whole = all((folder / name).exists() for name in (PAGE, f"{MODEL}/{CONFIG_NAME}", *pictures))
    return epochs if whole else 0


def check_unfinished(folder: Path, *, done: int, epochs: int) -> None:
    """Check that there is something left to do in a run: epochs, or a part of the report.

    Args:
        folder: the run's folder
        done: epochs of its latest checkpoint, the one that has begun included
        epochs: how many there shall be

    Raises:
        ValueError: if there is not
    """
    if done >= epochs and reported_epochs(folder) >= epochs:
        raise ValueError(f"nothing to resume: {folder} has finished its {done} epochs")


def render(summary: Mapping[str, Any], results: Mapping[str, Evaluation]) -> str:
    """Say in Markdown what a run gave; figures by class are the test's, or validation's.

    Args:
        summary: from `summarize`
        results: what the best weights reach, by split
    """
    kind, selected = summary["kind"], SELECTED[summary["selected_by"]]
    epochs = " of ".join(str(summary[name]) for name in ("epochs", "planned_epochs"))
    lines = [f"# {summary['model']} on {summary['data']}", ""]
    if "test" in results:
        lines.append(f"- test: **{results['test'].headline} {kind}s**")
    lines += [
        f"- validation: {results['val'].headline} {kind}s",
        f"- parameters: {summary['parameters']:,}",
        f"- training: {epochs} epochs, {summary['training_seconds']:.0f} s",
        f"- seed: {summary['seed']}",
        f"- weights: {summary['best_checkpoint']}, the best in validation by {selected}",
        "",
    ]
    return "\n".join([*lines, *markdown_table(results.get("test", results["val"]).table(kind))])


def markdown_table(table: Table) -> list[str]:
    """Return header and rows as lines of a Markdown table."""
    header, rows = table
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(name: str) -> str:
    """Return a name as a cell of a Markdown table, which a bar or a line break would end."""
    return " ".join(name.replace("|", "\\|").split())
