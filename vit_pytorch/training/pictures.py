"""Pictures of a training: its curves, and what its task shows of the results.

Each function draws what it is given into a PNG file, `path`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vit_pytorch.lettering import letter
from vit_pytorch.storage import replacing
from vit_pytorch.training.evaluation import (
    ClassEvaluation,
    Evaluation,
    LabelEvaluation,
    ValueEvaluation,
    calibration_error,
)
from vit_pytorch.training.history import Row
from vit_pytorch.training.summary import COURSE

MOST_NUMBERS = 30
# curves, or panels, that one picture shows
MOST_SHOWN = 12
Draw = Callable[[Path], None]
PANELS = {
    "loss": ("train/loss", "val/loss"),
    "accuracy": ("val/accuracy", "val/accuracy_top5"),
    "precision": ("val/map", "val/f1", "val/macro_f1"),
    "mean absolute error": ("val/mae",),
    "R²": ("val/r2",),
    "learning rate": ("lr",),
}


def pictures_of(result: Evaluation, rows: Sequence[Row]) -> dict[str, Draw]:
    """Return the pictures of a run by the names of their files: its course, and its results.

    Args:
        result: What the best weights reach, on test images or those of validation.
        rows: From `read_rows`.
    """
    pictures: dict[str, Draw] = {COURSE: lambda path: draw_curves(rows, path)}
    if isinstance(result, ClassEvaluation):
        families, names = letter(result.classes)
        result = replace(result, classes=tuple(names))
        pictures["confusion.png"] = partial(draw_confusion, result)
        pictures["wrong.png"] = partial(draw_wrong, result)
        pictures["reliability.png"] = partial(draw_reliability, result)
    elif isinstance(result, LabelEvaluation):
        families, names = letter(result.labels)
        pictures["precision_recall.png"] = partial(
            draw_precision_recall, replace(result, labels=tuple(names))
        )
    else:
        families, names = letter(result.names)
        pictures["predicted.png"] = partial(draw_predicted, replace(result, names=tuple(names)))
    return {name: partial(_draw_in, families, draw) for name, draw in pictures.items()}


def _draw_in(families: Sequence[str], draw: Draw, path: Path) -> None:
    """Draw with fonts of some families."""
    with rc_context({"font.family": families}):
        draw(path)


def draw_curves(
    rows: Sequence[Row],
    path: str | os.PathLike[str],
    panels: Mapping[str, Sequence[str]] = PANELS,
) -> None:
    """Draw what was measured over the epochs: by itself losses, accuracies and the learning rate.

    Args:
        rows: From `read_rows`.
        path: The PNG file.
        panels: Titles, and which columns each shows where an epoch measured them; losses first.
    """
    measured = {
        title: [key for key in keys if any(key in row for row in rows)] for title, keys in panels.items()
    }
    shown = {title: keys for title, keys in measured.items() if keys}
    figure = Figure(figsize=(4 * len(shown), 3.6), layout="constrained")
    for axes, (title, keys) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
    ):
        for key in keys:
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            axes.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 20 else None)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
        if title == "loss":
            axes.set_yscale("log")
    _save(figure, path)


def draw_confusion(result: ClassEvaluation, path: str | os.PathLike[str]) -> None:
    """Draw the confusion matrix, each row shaded by its part of the true class, with numbers if they fit."""
    classes, confusion = result.classes, result.confusion
    count = len(classes)
    side = min(3 + 0.45 * count, 20)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes: Axes = figure.subplots()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= MOST_NUMBERS:
        axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
        axes.set_yticks(range(count), classes)
        for row, numbers in enumerate(confusion.tolist()):
            for column, number in enumerate(numbers):
                if number:
                    light = "white" if number > sum(numbers) / 2 else "black"
                    axes.text(column, row, number, ha="center", va="center", color=light)
    _save(figure, path)


def draw_wrong(result: ClassEvaluation, path: str | os.PathLike[str]) -> None:
    """Draw images that were classified wrongly, each with its true and its predicted class."""
    classes, wrong = result.classes, result.wrong
    columns = min(5, max(1, len(wrong)))
    rows = max(1, -(-len(wrong) // columns))
    figure = Figure(figsize=(2.2 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, item in zip(grid.flat, wrong, strict=False):
        image = as_rgb_or_grey(item.image).movedim(0, -1).numpy()
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(
            f"{classes[item.true]}, taken for\n{classes[item.predicted]} ({item.probability:.0%})", fontsize=9
        )
    if not wrong:
        grid[0, 0].text(0.5, 0.5, "none", ha="center", va="center")
    _save(figure, path)


def draw_reliability(result: ClassEvaluation, path: str | os.PathLike[str]) -> None:
    """Draw how often a classifier is right over how sure it is, before and after calibration."""
    figure = Figure(figsize=(5.2, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1)
    names = ["as it is", f"temperature {result.temperature or 1:.2f}"]
    for counts, name in zip(result.reliability, names, strict=False):
        images, sure, right = counts[:, counts[0] > 0]
        label = f"{name} (ECE {calibration_error(counts):.1%})"
        axes.plot((sure / images).numpy(), (right / images).numpy(), marker=".", label=label)
    axes.set(xlabel="probability", ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    if result.reliability:
        axes.legend()
    _save(figure, path)


def draw_precision_recall(result: LabelEvaluation, path: str | os.PathLike[str]) -> None:
    """Draw precision over recall of each label that an image has, with the point of its threshold.

    Of many labels those with the most images are drawn.
    """
    from torchmetrics.functional.classification import binary_precision_recall_curve

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    found = result.by_label()
    order = sorted(range(len(found)), key=lambda i: -int(result.targets[:, i].sum()))
    for i in [i for i in order if result.targets[:, i].any()][:MOST_SHOWN]:
        name = result.labels[i]
        precision, recall, _ = binary_precision_recall_curve(result.scores[:, i], result.targets[:, i].int())
        label = f"{name} (AP {found[name]['average_precision']:.2f})"
        (line,) = axes.plot(recall.numpy(), precision.numpy(), label=label)
        reached, right = found[name]["recall"], found[name]["precision"]
        if reached is not None and right is not None:
            axes.plot(reached, right, marker="o", color=line.get_color())
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def draw_predicted(result: ValueEvaluation, path: str | os.PathLike[str]) -> None:
    """Draw predicted against true values, a panel for each value; on the line they are equal."""
    names = result.names[:MOST_SHOWN]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for i, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        true, predicted = result.targets[:, i], result.predicted[:, i]
        ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
        axes.plot(ends, ends, color="gray", linewidth=1)
        axes.plot(true.numpy(), predicted.numpy(), ".", alpha=0.5)
        axes.set(title=name, xlabel="true", ylabel="predicted")
        axes.grid(alpha=0.3)
    _save(figure, path)


def as_rgb_or_grey(images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d h w"]:
    """Return images of one or three channels as they are, and the mean over the channels of others."""
    return images if images.shape[-3] in (1, 3) else images.mean(dim=-3, keepdim=True)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with replacing(path) as file:
        figure.savefig(file, dpi=120)
