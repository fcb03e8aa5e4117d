"""The summary of a run, for machines and for people."""

import json
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vit_pytorch
from vit_pytorch.base import CONFIG_NAME
from vit_pytorch.create import MODEL
from vit_pytorch.data.record import few
from vit_pytorch.storage import write_file
from vit_pytorch.training.config import RunConfig
from vit_pytorch.training.evaluation import Evaluation, Table, headline
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


def describe_run(
    config: RunConfig,
    model: nn.Module,
    rows: Sequence[Row],
    *,
    sizes: Mapping[str, int],
    skipped: Mapping[str, str],
) -> dict[str, Any]:
    """Collect what every run has to tell, whatever it learned.

    Args:
        config: its configuration
        model: the model
        rows: the course of the training
        sizes: images in each split
        skipped: images that could not be decoded, with the reason
    """
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


def publish(
    summary: Mapping[str, Any], page: str, pictures: Mapping[str, Callable[[Path], None]], folder: Path
) -> None:
    """Draw a run's pictures, and write and print its summary, with which it has finished.

    An error of a picture is raised at the end, so that it costs nothing else.

    Args:
        summary: figures, for `summary.json`, which is written last
        page: the same in words, for `summary.md`
        pictures: what draws each picture, by the name of its file
        folder: the run's folder
    """
    failures = []
    for name, draw in pictures.items():
        try:
            draw(folder / name)
        except Exception as error:
            failures.append(error)
    write_file(folder / PAGE, page)
    write_file(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    print(page)
    print(f"all of it is in {folder}", flush=True)
    if failures:
        raise failures[0]


def reported_epochs(folder: Path) -> int:
    """Return after how many epochs a run has reported; 0 if a part of the report is missing."""
    file = folder / SUMMARY
    if not file.exists():
        return 0
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        epochs = int(summary["epochs"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
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
        summary: what `summary.json` says
        results: what the best weights reach, by split
    """
    kind, selected = summary["kind"], SELECTED[summary["selected_by"]]
    epochs = " of ".join(str(summary[name]) for name in ("epochs", "planned_epochs"))
    lines = [f"# {summary['model']} on {summary['data']}", ""]
    if "test" in results:
        lines.append(f"- test: **{headline(results['test'], kind)}**")
    lines += [
        f"- validation: {headline(results['val'], kind)}",
        f"- parameters: {summary['parameters']:,}",
        f"- training: {epochs} epochs, {summary['training_seconds']:.0f} s",
        f"- seed: {summary['seed']}",
        f"- weights: {summary['best_checkpoint']}, the best in validation by {selected}",
        *skipped_lines(summary),
        "",
    ]
    return "\n".join([*lines, *markdown_table(results.get("test", results["val"]).table(kind))])


def skipped_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the line of a summary that names what could not be decoded; none where all could."""
    bad = [f"{name} ({reason})" for name, reason in summary["skipped_images"].items()]
    return [f"- left out, since they could not be decoded: {few(bad)}".replace("\n", " ")] if bad else []


def markdown_table(table: Table) -> list[str]:
    """Return header and rows as lines of a Markdown table."""
    header, rows = table
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(name: str) -> str:
    """Return a name as a cell of a Markdown table, which a bar or a line break would end."""
    return " ".join(name.replace("|", "\\|").split())
