"""`vit explain`: what a classifier looks at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from vit_pytorch.analysis.report import Explanation, Subject, explain_image, write_pictures, write_report
from vit_pytorch.cli.functions import call
from vit_pytorch.cli.layers import UsageError
from vit_pytorch.cli.tables import print_json, table
from vit_pytorch.cli.use import BadFiles
from vit_pytorch.create import comes_trained, create_model
from vit_pytorch.data import Preprocessing, eval_transform, load_images
from vit_pytorch.data.prediction import find_images
from vit_pytorch.data.reader import LoadingError
from vit_pytorch.layers.arguments import check_integer
from vit_pytorch.preprocessing import fit_size
from vit_pytorch.registry import entries
from vit_pytorch.storage import making_folder
from vit_pytorch.training.predictor import put_on_device
from vit_pytorch.training.problems import Answer
from vit_pytorch.training.runs import check_creatable
from vit_pytorch.training.saved import SavedClassifier, read_classifier

REPORT = "report.html"
# Pixels of a picture's longer side at most.
SIDE = 512


@dataclass
class Explained:
    """What was written for one image.

    Args:
        image: the image.
        answer: names and scores of classes, labels or values.
        shown: the same for people.
        pictures: the files.
    """

    image: Path
    answer: Answer
    shown: list[str]
    pictures: list[Path]


def explain(arguments: Sequence[str]) -> None:
    """Parse the options of `vit explain` and run it."""
    call(print_explanation, "explain", arguments, positional=["model", "images"], several="images")


def print_explanation(
    model: str,
    images: list[str],
    output: str = "explained",
    pretrained: bool | str = False,
    top: int = 5,
    megabytes: float = 14.0,
    as_json: bool = False,
    on_bad: Literal["report", "skip", "stop"] = "report",
) -> None:
    """Show what a classifier looks at: pictures, and a page to explore its attention in a browser.

    Args:
        model: Folder of a run or of a model, or the name of a model.
        images: Files, folders or patterns.
        output: Folder for report.html and the pictures; files of the same names are replaced.
        pretrained: For a named model: `true` for its published weights, or a checkpoint. Trained models that
            ship with the package always have their weights.
        top: Number of classes or labels whose relevance is shown, the most probable first; of values all.
        megabytes: Size of the page at most; attention is stored as finely as fits.
        as_json: Print JSON instead of a table.
        on_bad: As for `vit predict`.

    Raises:
        FileNotFoundError: Where there is no model or no such image.
        LoadingError: Where no image can be decoded.
        ValueError: Where the model has no classifier or takes no images, or the images do not fit in the
            page.
    """
    check_integer("top", top)
    if not megabytes > 0:
        raise UsageError(f"megabytes must be positive, got {megabytes}")
    paths = find_images(images)
    pretrained = pretrained or comes_trained(model)
    saved = read_classifier(create_model(model, pretrained=pretrained).eval(), model)
    if len(saved.preprocessing.size) != 2:
        extent = " x ".join(map(str, saved.preprocessing.size))
        raise ValueError(f"images are explained, but {model} takes an input of {extent}")
    check_creatable(output)
    report = Path(output) / REPORT
    done: list[Explained] = []
    bad = BadFiles(on_bad)
    subject = describe(model, saved, untrained=model in entries() and pretrained is False)
    # a refusal leaves no pictures of the images before it, and those of an earlier page as they were
    with making_folder(report.parent), TemporaryDirectory(dir=report.parent, prefix=".") as place:
        explanations = _explain(saved, paths, Path(place), top, done, bad)
        first = next(explanations, None)
        if first is None:
            raise LoadingError("none of the images could be decoded")
        explanations = chain([first], explanations)
        size = write_report(report, subject, explanations, count=len(paths), megabytes=megabytes)
        for one in done:
            one.pictures = [path.replace(report.with_name(path.name)) for path in one.pictures]
    if as_json:
        shown = [
            {
                "image": str(one.image),
                **one.answer,
                "pictures": [str(path) for path in one.pictures],
            }
            for one in done
        ]
        print_json({"report": str(report), "bytes": size, "images": shown})
    else:
        rows = [[str(one.image), *one.shown] for one in done]
        print(table(["image", *(f"{i + 1}." for i in range(len(rows[0]) - 1))], rows))
        pictures = sum(len(one.pictures) for one in done)
        print(f"{report} ({size / 1e6:.1f} MB), and {pictures} pictures beside it")
    bad.leave()


def describe(name: str, saved: SavedClassifier, *, untrained: bool) -> Subject:
    """Say what a report says of its model.

    Args:
        name: what the command line calls it.
        saved: the model.
        untrained: whether its weights are random.
    """
    height, width = saved.preprocessing.image_size
    facts = [
        type(saved.model).__name__,
        f"{sum(p.numel() for p in saved.model.parameters()):,} parameters",
        f"input {width} × {height} pixels",
        f"{len(saved.classes)} {saved.problem.plural}",
    ]
    warning = ""
    if untrained:
        warning = (
            f"{name} has random weights here, so that the maps show what the architecture does before any "
            "training. Published weights come with --pretrained=true, or a checkpoint's path."
        )
    title = Path(name).resolve().name if Path(name).is_dir() else name
    values = saved.problem.task == "regression"
    return Subject(
        as_utf_8(title), facts, saved.classes, warning, saved.problem.describe_score if values else None
    )


def as_utf_8(name: str) -> str:
    """Return the name of a file with escapes for bytes that are no UTF-8, which no picture can show."""
    return name.encode("utf-8", "backslashreplace").decode()


def _explain(
    saved: SavedClassifier,
    paths: Sequence[Path],
    folder: Path,
    top: int,
    done: list[Explained],
    bad: BadFiles,
) -> Iterator[Explanation]:
    """Explain one image after the other, and write its pictures in a folder."""
    prep = saved.preprocessing
    transform = eval_transform(prep)
    model = put_on_device(saved.model)
    device = next(model.parameters()).device
    stems: set[str] = set()
    for path, image in load_images(paths, channels=prep.channels, window=prep.window, on_bad=bad):
        shown = explain_image(
            model,
            transform(image).to(device),
            name=as_utf_8(path.name),
            picture=at_full_size(image, prep),
            top=top if saved.problem.task != "regression" else len(saved.classes),
            scores=saved.problem.scores,
        )
        answer = saved.problem.answer(shown.scores, len(shown.top))
        named = [
            f"{saved.classes[index]} {saved.problem.describe_score(score)}" for index, score in shown.top
        ]
        pictures = write_pictures(shown, folder, _free(path.stem, stems))
        done.append(Explained(path, answer, named, pictures))
        yield shown


def at_full_size(image: UInt8[Tensor, "c h w"], prep: Preprocessing) -> UInt8[Tensor, "c h2 w2"]:
    """Return the part of an image that a model sees, with the image's own resolution where that is higher."""
    if prep.max_tokens is None:
        scale = min(
            side / (own / prep.crop_pct) for side, own in zip(image.shape[1:], prep.image_size, strict=True)
        )
        scale = max(1.0, min(scale, SIDE / max(prep.image_size)))
        height, width = (round(side * scale) for side in prep.image_size)
        prep = replace(prep, image_size=(height, width))
    with torch.no_grad():
        return fit_size(prep)(image)


def _free(stem: str, taken: set[str]) -> str:
    """Return a stem that no other image has."""
    free, number = stem, 1
    while free in taken:
        number += 1
        free = f"{stem}-{number}"
    taken.add(free)
    return free
