"""`vit evaluate` and `vit predict`: using what was trained."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from csv import writer as csv_writer
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TextIO

import torch
from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.cli import Status
from vit_pytorch.cli.functions import call
from vit_pytorch.cli.layers import read_layer
from vit_pytorch.cli.tables import print_json, print_json_list, table, table_lines
from vit_pytorch.create import load_model
from vit_pytorch.data import (
    BadImageError,
    ImageDataset,
    ImageLoader,
    ImageRecord,
    Preprocessing,
    Splits,
    eval_transform,
    find_clips,
    load_images,
    open_data,
    read_parts,
    read_record,
)
from vit_pytorch.data.loader import OnBad
from vit_pytorch.data.record import RECORD, SPLITS
from vit_pytorch.data.sources import Changed
from vit_pytorch.data.transforms import collate, move
from vit_pytorch.preprocessing import preprocessing_for
from vit_pytorch.training.config import CONFIG, DataConfig
from vit_pytorch.training.evaluation import Evaluation, check_outputs
from vit_pytorch.training.evaluation import evaluate as measure
from vit_pytorch.training.probing import Probe, embed, read_features
from vit_pytorch.training.probing import measure as run_probe
from vit_pytorch.training.saved import SavedClassifier, load_classifier

Load = Callable[[ImageDataset, Preprocessing, int], ImageLoader]


def evaluate(arguments: Sequence[str]) -> None:
    """Parse the options of `vit evaluate` and run it."""
    call(print_evaluation, "evaluate", arguments, positional=["run"])


def predict(arguments: Sequence[str]) -> None:
    """Parse the options of `vit predict` and run it."""
    call(print_predictions, "predict", arguments, positional=["run", "images"], several="images")


def print_evaluation(
    run: str,
    data: str | None = None,
    split: Literal["test", "val", "train", "all"] = "test",
    batch_size: int = 64,
    workers: int = 0,
    on_bad: OnBad = "stop",
    changed: Changed = "stop",
    probe: Probe | None = None,
    neighbours: int = 20,
    as_json: bool = False,
) -> None:
    """Measure a trained classifier, or with a probe the features of any model, on labelled images.

    Args:
        run: Folder of a run, or of a model.
        data: As for `vit train`; the run's own data if left out.
        split: Which images; `all` takes every split.
        batch_size: Images that are classified at once.
        workers: Processes that load images.
        on_bad: Whether an image that cannot be decoded stops the command or is skipped.
        changed: Whether a run's data that are not those it began with stop the command, or the images that
            are the same are measured, in the splits that they were in.
        probe: Measure features instead of the classifier, which need not be there: `knn` lets the nearest
            training images vote, `linear` fits a logistic regression to the training images.
        neighbours: How many images vote.
        as_json: Print JSON instead of a table.

    Raises:
        FileNotFoundError: Where there is no model, or no run whose data could be taken.
        ValueError: Where the data has other classes than the model, or a probe is asked what it knows.
    """

    def load(images: ImageDataset, prep: Preprocessing, classes: int) -> ImageLoader:
        return ImageLoader(
            images,
            prep,
            None,
            batch_size=batch_size,
            num_classes=classes,
            workers=workers,
            on_bad=on_bad,
        )

    if probe is not None:
        _print_probe(run, data, split, load, probe, neighbours, as_json, changed)
        return
    saved = load_classifier(run)
    splits = _open(_data_config(Path(run), data), _record(run, data), changed)
    _check_classes(saved.classes, splits.classes)
    present = {name: images for name in SPLITS if (images := getattr(splits, name)) is not None}
    if split != "all" and split not in present:
        raise ValueError(f"the data has no {split} split; it has {', '.join(present)}")
    loaders = [
        load(images, saved.preprocessing, len(saved.classes))
        for name, images in present.items()
        if split in ("all", name)
    ]
    result = measure(on_device(saved), loaders, saved.classes, saved.preprocessing)
    skipped = _skipped(loaders)
    if as_json:
        print_json({"split": split, **result.as_dict(), "skipped_images": skipped})
    else:
        _print_result(result, split, splits.train.kind, skipped=len(skipped))


def _print_probe(
    run: str,
    data: str | None,
    split: str,
    load: Load,
    probe: Probe,
    neighbours: int,
    as_json: bool,
    changed: Changed,
) -> None:
    """Measure the features of a model; see `print_evaluation`."""
    if split not in ("test", "val"):
        raise ValueError(f"a probe knows the train split; it is asked val or test, got {split}")
    model = load_model(run)
    splits = _open(_data_config(Path(run), data), _record(run, data), changed)
    asked = splits.test if split == "test" else splits.val
    if asked is None:
        raise ValueError("the data has no test split; it has train, val")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    device, prep = next(model.parameters()).device, preprocessing_for(model)
    loaders = [load(images, prep, len(splits.classes)) for images in (splits.train, asked)]
    known, queries = (
        read_features(lambda images: embed(model, images), loader, device) for loader in loaders
    )
    accuracy = run_probe(probe, known, queries, neighbours=neighbours)
    count, bad = len(queries.labels), _skipped(loaders)
    if as_json:
        figures = {"split": split, "probe": probe, "images": count, "accuracy": accuracy}
        print_json({**figures, "skipped_images": bad})
        return
    print(f"{split}: {probe} accuracy {accuracy:.2%} of {count} images, knowing {len(known.labels)}")
    if bad:
        print(f"{len(bad)} images could not be decoded and are left out")


def _skipped(loaders: Sequence[ImageLoader]) -> dict[str, str]:
    """Name the images that loaders have left out, with the reasons."""
    return {name: reason for loader in loaders for name, reason in loader.bad.items()}


def print_predictions(
    run: str,
    images: list[str],
    top: int = 3,
    batch_size: int = 64,
    on_bad: Literal["report", "skip", "stop"] = "report",
    step: int | None = None,
    csv: str | None = None,
    as_json: bool = False,
) -> None:
    """Classify images; the clips of videos, one after the other; or volumes.

    Args:
        run: Folder of a run, or of a model.
        images: Files, folders or patterns.
        top: Number of classes to show for each image, the most probable first.
        batch_size: Images, or clips of a video, that are classified at once.
        on_bad: What happens to a file that cannot be decoded: `report` names it on standard error, goes on,
            and leaves with exit status 3 at the end; `skip` leaves it out with a warning; `stop` ends the
            command there, with exit status 1.
        step: Frames of a video from the start of one clip to that of the next; a clip's length if left out.
        csv: Write a CSV file instead of printing a table; `-` for standard output.
        as_json: Print JSON instead of a table.

    Raises:
        FileNotFoundError: Where there is no model or no such image.
        ValueError: Where a number is too small, a name is empty, or both CSV and JSON are asked for.
        SystemExit: With status 3 where files could not be decoded.
    """
    for name, value in (("top", top), ("batch_size", batch_size), ("step", step)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not run:
        raise ValueError("the name of the run must not be empty")
    if csv is not None and as_json:
        raise ValueError("predictions are written as CSV or as JSON, got both --csv and --json")
    saved = load_classifier(run)
    bad = BadFiles(on_bad)
    if saved.preprocessing.frames is None:
        predictions = _predict(saved, images, top, batch_size, bad)
    else:
        predictions = _predict_parts(saved, images, top, batch_size, bad, step)
    # what is wrong with the names is known before anything is written
    first = next(predictions, None)
    predictions = predictions if first is None else chain([first], predictions)
    count = min(top, len(saved.classes))
    if as_json:
        print_json_list(predictions)
    elif csv == "-":
        _write_csv(sys.stdout, predictions, count, timed=saved.preprocessing.frames is not None)
    elif csv is not None:
        with open(csv, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            _write_csv(file, predictions, count, timed=saved.preprocessing.frames is not None)
    elif first is not None:
        timed = "clips" in first
        header = [next(iter(first)), *["seconds"] * timed, *(f"{i + 1}." for i in range(count))]
        rows = (row for prediction in predictions for row in _rows(prediction, timed=timed))
        for line in table_lines(header, rows):
            print(line)
    if bad.count:
        print(f"vit: files that could not be read: {bad.count}, named above", file=sys.stderr)
        raise SystemExit(Status.DATA)


class BadFiles:
    """What happens to files that cannot be decoded, and how many of them were reported.

    Args:
        on_bad: See `print_predictions`.
    """

    def __init__(self, on_bad: Literal["report", "skip", "stop"]) -> None:
        self.on_bad = on_bad
        self.count = 0

    def __call__(self, error: BadImageError) -> None:
        """Report a file, leave it out with a warning, or stop."""
        if self.on_bad == "stop":
            raise error
        if self.on_bad == "skip":
            warnings.warn(f"skipped {error}", stacklevel=2)
            return
        self.count += 1
        print(f"vit: {error}", file=sys.stderr)


def _predict(
    saved: SavedClassifier, paths: Sequence[str], top: int, batch_size: int, bad: BadFiles
) -> Iterator[dict[str, Any]]:
    model, transform = on_device(saved), eval_transform(saved.preprocessing)
    device = next(model.parameters()).device
    prep = saved.preprocessing
    found = load_images(paths, channels=prep.channels, on_bad=bad, window=prep.window)
    while batch := list(islice(found, batch_size)):
        prepared = [transform(image) for _, image in batch]
        images = move(collate(prepared, saved.preprocessing), device)
        with torch.no_grad():
            probabilities, indices = (
                check_outputs(model(images)).softmax(1).topk(min(top, len(saved.classes)))
            )
        for (path, _), values, chosen in zip(batch, probabilities.tolist(), indices.tolist(), strict=True):
            yield {"image": str(path), "top": _named(values, chosen, saved)}


def _predict_parts(
    saved: SavedClassifier,
    paths: Sequence[str],
    top: int,
    batch_size: int,
    bad: BadFiles,
    step: int | None,
) -> Iterator[dict[str, Any]]:
    """Classify each clip of each video, and the video by the mean over its clips; or each volume."""
    on_device(saved)
    for path in find_clips(paths):
        try:
            spans, probabilities = _classify_parts(saved, path, batch_size, step)
        except BadImageError as error:
            bad(error)
            continue
        values, indices = probabilities.mean(0).topk(min(top, len(saved.classes)))
        found = _named(values.tolist(), indices.tolist(), saved)
        if spans is None:
            yield {"volume": str(path), "top": found}
            continue
        each = probabilities.topk(min(top, len(saved.classes)))
        clips = [
            {"start": start, "end": end, "top": _named(values, chosen, saved)}
            for (start, end), values, chosen in zip(
                spans, each.values.tolist(), each.indices.tolist(), strict=True
            )
        ]
        yield {"video": str(path), "top": found, "clips": clips}


@torch.no_grad()
def _classify_parts(
    saved: SavedClassifier, path: Path, batch_size: int, step: int | None
) -> tuple[list[tuple[float, float]] | None, Tensor]:
    """Start and end of the clips of a video, None for a volume; and probabilities (clip, class)."""
    prep = saved.preprocessing
    transform = eval_transform(prep)
    device = next(saved.model.parameters()).device
    parts = read_parts(path, prep, step=step)
    spans: list[tuple[float, float]] = []
    probabilities = []
    while batch := list(islice(parts, batch_size)):
        clips = move(collate([transform(part.clip) for part in batch], prep), device)
        probabilities.append(check_outputs(saved.model(clips)).softmax(1).cpu())
        spans += [part.seconds for part in batch if part.seconds is not None]
    return spans or None, torch.cat(probabilities)


def _named(values: Sequence[float], indices: Sequence[int], saved: SavedClassifier) -> list[dict[str, Any]]:
    return [
        {"class": saved.classes[index], "probability": value}
        for index, value in zip(indices, values, strict=True)
    ]


def _rows(prediction: dict[str, Any], *, timed: bool) -> Iterator[list[str]]:
    """Yield what a table says of a file: its name, the time in it, and classes; for a video of each clip."""
    name = prediction[next(iter(prediction))]
    for clip in prediction.get("clips", []):
        span = f"{clip['start']:.2f} - {clip['end']:.2f}"
        yield [*([name, span] if timed else [f"{name} {span}"]), *_cells(clip)]
    yield [name, *["all" if "clips" in prediction else ""] * timed, *_cells(prediction)]


def _write_csv(file: TextIO, predictions: Iterable[dict[str, Any]], count: int, *, timed: bool) -> None:
    """Write a row for each file, or for each clip of a video and for the whole, as soon as it is there."""
    ranks = ["", *(f"_{i + 2}" for i in range(count - 1))]
    names = [f"{name}{rank}" for rank in ranks for name in ("class", "probability")]
    writer = csv_writer(file, lineterminator="\n")
    writer.writerow(["path", *["start", "end"] * timed, *names])
    for prediction in predictions:
        path = prediction[next(iter(prediction))]
        for part in (*prediction.get("clips", []), prediction):
            times = [part.get("start", ""), part.get("end", "")] if timed else []
            found = [value for entry in part["top"] for value in (entry["class"], entry["probability"])]
            writer.writerow([path, *times, *found])


def _cells(prediction: dict[str, Any]) -> list[str]:
    return [f"{entry['class']} {entry['probability']:.1%}" for entry in prediction["top"]]


def on_device(saved: SavedClassifier) -> VisionModel:
    """Put a classifier where it is used: on a GPU where there is one."""
    return saved.model.to("cuda" if torch.cuda.is_available() else "cpu")


def _data_config(run: Path, source: str | None) -> DataConfig:
    """The run's data, split as it was; or other data, split by themselves."""
    if source is not None:
        return DataConfig(source=source, split_seed=0)
    if not (run / CONFIG).is_file():
        raise FileNotFoundError(
            f"{run} does not say which data it was trained on (no {CONFIG}): name some by --data"
        )
    settings = read_layer(run / CONFIG)
    data = settings["data"]
    seed = settings["seed"] if data["split_seed"] is None else data["split_seed"]
    # how the data are prepared is a part of the saved model
    opened = {key: data[key] for key in ("source", "val_fraction", "test_fraction")}
    # runs of version 0.1 have no columns
    opened |= {f"{role}_column": data.get(f"{role}_column") for role in ("image", "label", "split")}
    opened |= {name: data.get(name) for name in ("epoch_samples", "classes", "val")}
    return DataConfig(**opened, split_seed=seed)


def _record(run: str, source: str | None) -> ImageRecord | None:
    """The images that a run began with, for its own data; None for other data and runs without a record."""
    file = Path(run) / RECORD
    return read_record(file) if source is None and file.exists() else None


def _open(config: DataConfig, record: ImageRecord | None, changed: Changed) -> Splits:
    return open_data(
        config.spec,
        seed=config.split_seed or 0,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        record=record,
        changed=changed,
        stream=config.stream,
    )


def _check_classes(known: Sequence[str], found: Sequence[str]) -> None:
    if tuple(known) != tuple(found):
        strange = [name for name in found if name not in known]
        lacking = [name for name in known if name not in found]
        raise ValueError(
            f"the data must have the model's {len(known)} classes in their order, got {len(found)}; "
            f"unknown to the model: {', '.join(strange) or 'none'}; "
            f"lacking in the data: {', '.join(lacking) or 'none'}"
        )


def _print_result(result: Evaluation, split: str, kind: str, *, skipped: int) -> None:
    print(f"{split}: accuracy {result.accuracy:.2%} of {result.images} {kind}s, loss {result.loss:.4f}")
    if skipped:
        print(f"{skipped} {kind}s could not be decoded and are left out")
    totals = result.confusion.sum(1).tolist()
    rows = [
        [name, str(total), "" if accuracy is None else f"{accuracy:.1%}"]
        for (name, accuracy), total in zip(result.class_accuracy.items(), totals, strict=True)
    ]
    print(table(["class", f"{kind}s", "accuracy"], rows, right=(1, 2)))
