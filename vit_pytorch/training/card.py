"""The model card of a run: README.md beside its weights, for whoever gets the model without the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_pytorch.preprocessing import Preprocessing
from vit_pytorch.training.config import TrainConfig
from vit_pytorch.training.evaluation import Evaluation, headline
from vit_pytorch.training.problems import Problem
from vit_pytorch.training.summary import markdown_table

CARD = "README.md"
# names that a card lists before it counts
MOST_NAMES = 30


def card_text(
    config: TrainConfig,
    problem: Problem,
    prep: Preprocessing,
    summary: Mapping[str, Any],
    results: Mapping[str, Evaluation],
) -> str:
    """Return the card of a run's model as Markdown.

    Args:
        config: how it was trained
        problem: what its outputs mean
        prep: how images are prepared
        summary: what `summary.json` says
        results: what the weights reach, by split
    """
    kind, images = summary["kind"], summary["images"]
    data = Path(config.data.source.partition("?")[0]).name or config.data.source
    pieces = "one" if len(problem.names) == 1 else str(len(problem.names))
    noun = problem.noun if len(problem.names) == 1 else problem.plural
    epochs = f"{summary['epochs']} of {summary['planned_epochs']}"
    start = Path(config.tuning.weights).name if config.tuning.weights else "random weights"
    # what the Hugging Face Hub calls such a model
    tag = "video-classification" if kind == "video" else "image-classification"
    settings = problem.settings()
    kept = f"With the weights are kept: {json.dumps(settings)}." if settings else "Outputs need nothing else."
    measured = "test" if "test" in results else "val"
    blocks = [
        f"---\nlibrary_name: vit_pytorch\npipeline_tag: {tag}\n---",
        f"# {summary['model']} on {data}",
        (
            f"A model of {summary['parameters']:,} parameters that gives {pieces} {noun} for {kind}s of "
            f"{' x '.join(map(str, prep.size))} in {prep.channels} channels: {_names(problem.names)}."
        ),
        "## Figures",
        "\n".join(
            f"- {_title(split)}: {headline(result, kind)}, loss {result.loss:.4f}"
            for split, result in results.items()
        ),
        f"By {problem.noun}, on the {_title(measured)} {kind}s:",
        "\n".join(markdown_table(results[measured].table(kind))).rstrip(),
        "## Use",
        (
            "```python\nfrom vit_pytorch import Predictor\n\n"
            f'Predictor("FOLDER")("{_example(kind)}")  # FOLDER is that of this file\n```'
        ),
        f"```sh\nvit predict FOLDER {_example(kind)}\n```",
        (
            f"{kept} {kind.capitalize()}s are prepared as in training: interpolation "
            f"{prep.interpolation}, crop {prep.crop_pct:g} ({prep.crop_mode}), mean {_numbers(prep.mean)}, "
            f"standard deviation {_numbers(prep.std)}."
        ),
        "## Data",
        f"{data}, split from seed {config.split_seed} where the data has no splits of its own: "
        + ", ".join(f"{count} {kind}s in {split}" for split, count in images.items())
        + f"; {len(summary['skipped_images'])} could not be decoded and were left out.",
        "## Training",
        (
            f"{epochs} epochs, {summary['training_seconds']:.0f} s, from {start} ({config.tuning.method}), "
            f"by the loss {config.loss.chosen(config.task)} and {config.optimizer.name} with learning rate "
            f"{config.optimizer.lr:g} and weight decay {config.optimizer.weight_decay:g}, "
            f"batches of {config.batch_size}, precision {config.precision}, seed {config.seed}. Kept are the "
            f"weights of {summary['best_checkpoint']}, the best in validation by {summary['selected_by']}. "
            f"Versions: {', '.join(f'{name} {number}' for name, number in summary['versions'].items())}."
        ),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits(problem, kind, summary, results)),
    ]
    return "\n\n".join(blocks) + "\n"


def limits(
    problem: Problem, kind: str, summary: Mapping[str, Any], results: Mapping[str, Evaluation]
) -> list[str]:
    """Say what the figures do not show."""
    found = [
        (
            f"The figures are of {kind}s drawn as the training {kind}s were; on {kind}s from elsewhere the "
            "model may be worse."
        ),
        "Fairness, robustness and safety were not measured.",
    ]
    if "test" not in results:
        found.append(
            f"The data has no test split: the figures are of the validation {kind}s, by which the weights "
            "were chosen, and are too high."
        )
    if (fewest := min(result.images for result in results.values())) < 1000:
        found.append(
            f"{fewest} {kind}s are few: a figure of 50 % on them has a standard error of "
            f"{50 / fewest**0.5:.1f} points."
        )
    if problem.task == "classify":
        found.append(f"Every {kind} gets one of the classes, also where it shows none of them.")
    if problem.task == "multilabel":
        found.append(
            "Thresholds were chosen for F1 on the validation split, and fit its share of each label."
        )
    if problem.task == "regression":
        found.append("Values far outside those of the training split are extrapolated.")
    return found


def _title(split: str) -> str:
    return {"val": "validation"}.get(split, split)


def _example(kind: str) -> str:
    return {"video": "clip.mp4", "volume": "scan.nii.gz"}.get(kind, "photo.jpg")


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:MOST_NAMES]) + more


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
