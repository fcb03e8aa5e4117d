"""The summary of a run, for machines and for people."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vit_pytorch
from vit_pytorch.training.config import RunConfig, TrainConfig
from vit_pytorch.training.evaluation import Evaluation
from vit_pytorch.training.history import Row

SUMMARY = "summary.json"
PAGE = "summary.md"
SELECTED = {"accuracy": "accuracy (of equal ones, by loss)", "loss": "loss"}


def summarize(
    config: TrainConfig,
    model: nn.Module,
    results: Mapping[str, Evaluation],
    rows: Sequence[Row],
    *,
    best: str,
    sizes: Mapping[str, int],
    skipped: Mapping[str, str],
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
        kind: What the images are, where they are videos or volumes.
    """
    return {
        **describe_run(config, model, rows, sizes=sizes, skipped=skipped),
        "kind": kind,
        "best_checkpoint": best,
        "selected_by": config.select,
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


def write_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Write `summary.json` and `summary.md`."""
    write_page(summary, render(summary), folder)


def write_page(summary: Mapping[str, Any], page: str, folder: Path) -> None:
    """Write a summary as `summary.json`, and its words as `summary.md`."""
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")


def render(summary: Mapping[str, Any]) -> str:
    """Say in Markdown what a run gave; figures by class are the test's, or validation's."""
    split = "test" if "test" in summary else "val"
    kind, selected = summary["kind"], SELECTED[summary["selected_by"]]
    epochs = " of ".join(str(summary[name]) for name in ("epochs", "planned_epochs"))
    lines = [f"# {summary['model']} on {summary['data']}", ""]
    if "test" in summary:
        lines.append(
            f"- test accuracy: **{summary['test']['accuracy']:.2%}** of {summary['test']['images']} {kind}s"
        )
    lines += [
        f"- validation accuracy: {summary['val']['accuracy']:.2%} of {summary['val']['images']} {kind}s",
        f"- parameters: {summary['parameters']:,}",
        f"- training: {epochs} epochs, {summary['training_seconds']:.0f} s",
        f"- seed: {summary['seed']}",
        f"- weights: {summary['best_checkpoint']}, the best in validation by {selected}",
        "",
    ]
    return "\n".join([*lines, *class_table(summary[split], kind)])


def class_table(result: Mapping[str, Any], kind: str = "image") -> list[str]:
    """The accuracy by class, and what each class was most often taken for, as rows of a Markdown table."""
    names = list(result["class_accuracy"])
    lines = [f"| class | {kind}s | accuracy | most often taken for |", "|---|---|---|---|"]
    for name, counts in zip(names, result["confusion"], strict=True):
        accuracy = result["class_accuracy"][name]
        mistakes = [
            (count, other) for other, count in zip(names, counts, strict=True) if other != name and count
        ]
        worst = "{1} ({0})".format(*max(mistakes)) if mistakes else ""
        shown = "" if accuracy is None else f"{accuracy:.1%}"
        lines.append(f"| {name} | {sum(counts)} | {shown} | {worst} |")
    return [*lines, ""]
