"""Pictures of a training: its curves, the confusion matrix, what was classified wrongly."""

import os
from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vit_pytorch.storage import replacing
from vit_pytorch.training.evaluation import Wrong
from vit_pytorch.training.history import Row

MOST_NUMBERS = 30
PANELS = {
    "loss": ("train/loss", "val/loss"),
    "accuracy": ("val/accuracy", "val/accuracy_top5"),
    "learning rate": ("lr",),
}


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


def draw_confusion(
    confusion: Int64[Tensor, "k k"], classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw a confusion matrix, each row shaded by its part of the true class; numbers where they can be read.

    Args:
        confusion: Images by true class (row) and predicted class (column).
        classes: Names of the classes.
        path: The PNG file.
    """
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


def draw_wrong(wrong: Sequence[Wrong], classes: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draw images that were classified wrongly, each with its true and its predicted class.

    Args:
        wrong: The images.
        classes: Names of the classes.
        path: The PNG file.
    """
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


def as_rgb_or_grey(images: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d h w"]:
    """Return images of one or three channels as they are, and the mean over the channels of others."""
    return images if images.shape[-3] in (1, 3) else images.mean(dim=-3, keepdim=True)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with replacing(path) as file:
        figure.savefig(file, dpi=120)
