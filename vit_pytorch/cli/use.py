"""`vit evaluate` and `vit predict`: using what was trained."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from csv import writer as csv_writer
from functools import partial
from itertools import chain
from math import isnan
from pathlib import Path
from typing import Literal, TextIO

import torch

from vit_pytorch.cli import Status
from vit_pytorch.cli.functions import call
from vit_pytorch.cli.layers import UsageError, as_number, read_layer
from vit_pytorch.cli.tables import print_json, print_json_list, table, table_lines
from vit_pytorch.create import MODEL, open_model
from vit_pytorch.data import (
    BadImageError,
    FileImages,
    ImageDataset,
    ImageLoader,
    ImageRecord,
    Preprocessing,
    Splits,
    TaskName,
    open_data,
    read_record,
)
from vit_pytorch.data.loader import OnBad
from vit_pytorch.data.record import RECORD, SPLITS, few, find_recorded
from vit_pytorch.data.sources import (
    CSV_OPTIONS,
    Changed,
    is_table,
    shared_columns,
    split_options,
    with_columns,
)
from vit_pytorch.data.tables import read_column
from vit_pytorch.preprocessing import preprocessing_for
from vit_pytorch.storage import full_disk_named, replacing
from vit_pytorch.tome import merging
from vit_pytorch.training.config import CONFIG, DataConfig
from vit_pytorch.training.evaluation import Evaluation, headline
from vit_pytorch.training.evaluation import evaluate as measure
from vit_pytorch.training.predictor import Predictor, open_classifier, put_on_device
from vit_pytorch.training.probing import Probe, embed, read_features
from vit_pytorch.training.probing import measure as run_probe
from vit_pytorch.training.problems import Answer, Problem
from vit_pytorch.training.runs import check_creatable
from vit_pytorch.training.saved import TASK

# settings of tables
TABLE_SETTINGS = ("image_column", "label_column", "split_column", "label_separator", "image_root")
Known = dict[str, list[str]]
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
    neighbours: int | None = None,
    by: str | None = None,
    merge_tokens: int = 0,
    as_json: bool = False,
) -> None:
    """Measure a trained model, or with a probe the features of any model, on labelled images.

    Args:
        run: Folder of a run, or of a model; or the name of a model, for its shipped or published weights.
        data: As for `vit train`; the run's own data if left out. Other data are measured as they are: whole,
            if they are not split, and of a test split or of one class only, if need be; a probe splits them
            as `vit train` does.
        split: Which images; `all` takes every split.
        batch_size: Images that are classified at once.
        workers: Processes that load images.
        on_bad: Whether an image that cannot be decoded stops the command or is skipped.
        changed: Whether a run's data that are not those it began with stop the command, or the images that
            are the same are measured, in the splits that they were in.
        probe: Measure features instead of the classifier, which need not be there: `knn` lets the nearest
            training images vote, `linear` fits a logistic regression to the training images.
        neighbours: How many images vote in `knn`; 20 if left out.
        by: Column of a table (`csv:`): also measure the images of each of its values by themselves.
        merge_tokens: Number of patches by which each block of a plain ViT has fewer: those that are most
            alike become one.
        as_json: Print JSON instead of a table.

    Raises:
        FileNotFoundError: Where there is no model, or no run whose data could be taken.
        ValueError: Where the data has other classes than the model, or a probe is asked what it knows.
    """
    if neighbours is not None and probe != "knn":
        raise UsageError("--neighbours is for --probe knn")
    bad: dict[str, str] = {}
    load = partial(evaluation_loader, batch_size=batch_size, workers=workers, on_bad=on_bad, bad=bad)
    if probe is not None:
        if by is not None:
            raise UsageError("--by is for the figures of a trained model, not of a probe")
        _print_probe(
            run,
            data,
            split,
            load,
            bad,
            probe,
            20 if neighbours is None else neighbours,
            as_json,
            changed,
            merge_tokens,
        )
        return
    result, groups, kind, known = measure_run(
        run, data, split, load, changed, by=by, merge_tokens=merge_tokens
    )
    if as_json:
        figures = {"split": split, **result.as_dict(), "skipped_images": bad, **known}
        if by is not None:
            figures["by"] = {by: {value: group.as_dict() for value, group in groups.items()}}
        print_json(figures)
        return
    _print_result(result, split, kind, skipped=len(bad))
    if by is not None:
        print()
        print(table([by, "figures"], [[value, headline(group, kind)] for value, group in groups.items()]))


def measure_run(
    run: str | Path,
    data: str | None,
    split: str,
    load: Load,
    changed: Changed,
    *,
    by: str | None = None,
    merge_tokens: int = 0,
) -> tuple[Evaluation, dict[str, Evaluation], str, Known]:
    """Measure a trained model; see `print_evaluation`.

    Returns:
        The results; those of the images of each value of the column `by`, none without it; what the images
        are called; and what `known_images` says of other data.
    """
    saved = open_classifier(run)
    config = data_config(Path(run), data)
    values = _values(config.spec, by) if by is not None else {}
    splits = _open(
        config, _record(run, data), changed, saved.problem.task, whole=data is not None
    ).with_names(saved.classes)
    names = splits.measured or SPLITS
    present = {name: images for name in names if (images := getattr(splits, name)) is not None}
    if split != "all" and split not in present:
        raise ValueError(f"the data has no {split} split; it has {', '.join(present)}")
    chosen = [images for name, images in present.items() if split in ("all", name)]
    known = known_images(run, data, chosen)
    model = put_on_device(merging(saved.model, merge_tokens))

    def measured(parts: Sequence[ImageDataset]) -> Evaluation:
        loaders = [load(images, saved.preprocessing, len(saved.classes)) for images in parts]
        return measure(model, loaders, saved.problem, saved.preprocessing)

    groups = {value: measured(parts) for value, parts in _groups(chosen, values).items()}
    return measured(chosen), groups, splits.train.kind, known


def known_images(run: str | Path, data: str | None, chosen: Sequence[ImageDataset]) -> Known:
    """Find images of other data that a run has trained on, or chosen its weights by; warn if there are any.

    Args:
        run: Folder of a run, or of its model.
        data: The other data; None for the run's own, whose splits it has kept.
        chosen: The images that are measured.

    Returns:
        Their names under `images_trained_on` and `images_validated_on`; nothing for the run's own data, for a
        model without the record of a run, and for streams.
    """
    file = Path(run) / RECORD
    if not file.exists() and Path(run).name == MODEL:
        file = Path(run).parent / RECORD
    if data is None or not file.exists() or not all(images.listed for images in chosen):
        return {}
    found = find_recorded(read_record(file), chosen)
    trained, validated = found.get("train", ()), found.get("val", ())
    if trained or validated:
        kind, said = chosen[0].kind, {"trained on": trained, "validated on": validated}
        parts = " and ".join(f"{verb} ({few(names)})" for verb, names in said.items() if names)
        warnings.warn(
            f"of {sum(map(len, chosen))} {kind}s of {data}, {run} was {parts}: figures on those say little "
            f"about other {kind}s",
            stacklevel=2,
        )
    return {"images_trained_on": list(trained), "images_validated_on": list(validated)}


def _values(spec: str, column: str) -> dict[Path, str]:
    """Return what a column of a table says of each image.

    Raises:
        UsageError: The data are no table.
    """
    if not is_table(spec):
        raise UsageError(f"--by names a column of a table (csv:FILE), and the data are {spec}")
    kind, _, rest = spec.partition(":")
    name, options = split_options(rest, kind, CSV_OPTIONS)
    return read_column(Path(name).expanduser(), column, **options)


def _groups(chosen: Sequence[ImageDataset], values: Mapping[Path, str]) -> dict[str, list[ImageDataset]]:
    """Part images by what is said of them: numbers in their order, then words in theirs."""
    groups: dict[str, list[ImageDataset]] = {}
    for images in chosen if values else ():
        assert isinstance(images, FileImages), "tables are of files"
        said = [values[path] for path in images.paths]
        for value in set(said):
            indices = [index for index, each in enumerate(said) if each == value]
            groups.setdefault(value, []).append(images.subset(torch.tensor(indices)))
    return dict(sorted(groups.items(), key=lambda group: _rank(group[0])))


def _rank(value: str) -> tuple[bool, float, str]:
    """Return what sorts numbers by their size before words by their letters."""
    number = as_number(value)
    return (True, 0.0, value) if isnan(number) else (False, number, value)


def evaluation_loader(
    images: ImageDataset,
    prep: Preprocessing,
    classes: int,
    *,
    batch_size: int,
    workers: int,
    on_bad: OnBad,
    bad: dict[str, str] | None = None,
) -> ImageLoader:
    """Return the loader of images as a trained model takes them, each once, in order.

    Raises:
        ValueError: The model was trained on videos and these are volumes, or the other way round.
    """
    if prep.media is not None and images.kind != prep.media:
        raise ValueError(f"the model was trained on {prep.media}s, and the data are {images.kind}s")
    return ImageLoader(
        images,
        prep,
        None,
        batch_size=batch_size,
        num_classes=classes,
        workers=workers,
        on_bad=on_bad,
        bad=bad,
    )


def _print_probe(
    run: str,
    data: str | None,
    split: str,
    load: Load,
    bad: Mapping[str, str],
    probe: Probe,
    neighbours: int,
    as_json: bool,
    changed: Changed,
    merge_tokens: int,
) -> None:
    """Measure the features of a model; see `print_evaluation`."""
    if split not in ("test", "val"):
        raise ValueError(f"a probe knows the train split; it is asked val or test, got {split}")
    model = open_model(run)
    if (task := model.default_cfg.get(TASK, {}).get("task", "classify")) != "classify":
        raise ValueError(f"a probe tells classes from each other, and the task of {run} is {task}")
    splits = _open(data_config(Path(run), data), _record(run, data), changed)
    asked = splits.test if split == "test" else splits.val
    if asked is None:
        raise ValueError("the data has no test split; it has train, val")
    known_by_run = known_images(run, data, [asked])
    model = put_on_device(merging(model, merge_tokens))
    device, prep = next(model.parameters()).device, preprocessing_for(model)
    loaders = [load(images, prep, len(splits.classes)) for images in (splits.train, asked)]
    known, queries = (
        read_features(lambda images: embed(model, images), loader, device) for loader in loaders
    )
    accuracy = run_probe(probe, known, queries, neighbours=neighbours)
    count = len(queries.labels)
    if as_json:
        figures = {"split": split, "probe": probe, "images": count, "accuracy": accuracy}
        print_json({**figures, "skipped_images": bad, **known_by_run})
        return
    print(f"{split}: {probe} accuracy {accuracy:.2%} of {count} images, knowing {len(known.labels)}")
    if bad:
        print(f"{len(bad)} images could not be decoded and are left out")


def print_predictions(
    run: str,
    images: list[str],
    top: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    tta: bool = False,
    calibrated: bool = False,
    on_bad: Literal["report", "skip", "stop"] = "report",
    step: int | None = None,
    csv: str | None = None,
    as_json: bool = False,
) -> None:
    """Say which class, labels or values images have; or the clips of videos, one after the other; or volumes.

    Args:
        run: Folder of a run, or of a model; or the name of a model, for its shipped or published weights.
        images: Files, folders or patterns.
        top: Number of classes or labels to show for each image, the most probable first; 3 if left out.
        batch_size: Images, or clips of a video, that the model sees at once.
        workers: Processes that read images; not videos or volumes.
        tta: Average probabilities over ten views of each image: centre and corners, and their mirror images.
        calibrated: Show probabilities by the temperature that the run chose on its validation images.
        on_bad: What happens to a file that cannot be decoded: `report` names it on standard error, goes on,
            and leaves with exit status 3 at the end; `skip` leaves it out with a warning; `stop` ends the
            command there, with exit status 1.
        step: Frames of a video from the start of one clip to that of the next; a clip's length if left out.
        csv: Write a CSV file instead of printing a table, in a folder that is made if need be; `-` for
            standard output.
        as_json: Print JSON instead of a table.

    Raises:
        FileNotFoundError: Where there is no model or no such image.
        ValueError: Where a number is too small, a name is empty, an option does not fit the model, or both
            CSV and JSON are asked for.
        SystemExit: With status 3 where files could not be decoded.
    """
    if csv is not None and as_json:
        raise ValueError("predictions are written as CSV or as JSON, got both --csv and --json")
    if csv not in (None, "-"):
        check_creatable(Path(csv).parent)
    predictor = Predictor(
        run, top=top, batch_size=batch_size, workers=workers, tta=tta, calibrated=calibrated
    )
    bad = BadFiles(on_bad)
    predictions = predictor.stream(images, on_bad=bad, step=step)
    # what is wrong with the names is known before anything is written
    first = next(predictions, None)
    predictions = predictions if first is None else chain([first], predictions)
    timed = predictor.preprocessing.frames is not None
    if as_json:
        print_json_list(predictions)
    elif csv == "-":
        _write_csv(sys.stdout, predictions, predictor, timed=timed)
    elif csv is not None:
        # a pipe or a device has nothing to replace
        whole = nullcontext(Path(csv)) if Path(csv).exists() and not Path(csv).is_file() else replacing(csv)
        with (
            full_disk_named(csv),
            whole as place,
            place.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            _write_csv(file, predictions, predictor, timed=timed)
    elif first is not None:
        timed = "clips" in first
        header = [next(iter(first)), *["seconds"] * timed, *predictor.problem.shown(first)]
        rows = (
            row for prediction in predictions for row in _rows(prediction, predictor.problem, timed=timed)
        )
        for line in table_lines(header, rows):
            print(line)
    bad.leave()


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

    def leave(self) -> None:
        """Leave with an exit status that says so if files were reported.

        Raises:
            SystemExit: with status 3
        """
        if self.count:
            print(f"vit: files that could not be read: {self.count}, named above", file=sys.stderr)
            raise SystemExit(Status.DATA)


def _rows(prediction: Answer, problem: Problem, *, timed: bool) -> Iterator[list[str]]:
    """Yield what a table says of a file: its name, the time, and the answer; for a video of each clip."""
    name = prediction[next(iter(prediction))]
    for clip in prediction.get("clips", []):
        span = f"{clip['start']:.2f} - {clip['end']:.2f}"
        yield [*([name, span] if timed else [f"{name} {span}"]), *problem.shown(clip).values()]
    yield [name, *["all" if "clips" in prediction else ""] * timed, *problem.shown(prediction).values()]


def _write_csv(file: TextIO, predictions: Iterable[Answer], predictor: Predictor, *, timed: bool) -> None:
    """Write a row for each file, or for each clip of a video and for the whole, as soon as it is there."""
    writer, problem = csv_writer(file, lineterminator="\n"), predictor.problem
    columns = problem.cells(problem.answer(torch.zeros(len(problem.names)), predictor.top))
    writer.writerow(["path", *["start", "end"] * timed, *columns])
    for prediction in predictions:
        path = prediction[next(iter(prediction))]
        for part in (*prediction.get("clips", []), prediction):
            times = [part.get("start", ""), part.get("end", "")] if timed else []
            writer.writerow([path, *times, *problem.cells(part).values()])


def data_config(run: Path, source: str | None) -> DataConfig:
    """Return the run's data, split as it was; or other data, split by themselves, in columns of its names."""
    if source is not None:
        known = data_config(run, None).spec if is_table(source) and (run / CONFIG).is_file() else ""
        columns = shared_columns(known, source)
        # whether its splits are in a column, the other table says
        return DataConfig(source=with_columns(source, {**columns, "split": None}), split_seed=0)
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
    opened |= {name: data.get(name) for name in ("epoch_samples", "classes", "val")}
    opened |= {name: data[name] for name in TABLE_SETTINGS if data.get(name) is not None}
    return DataConfig(**opened, split_seed=seed)


def _record(run: str | Path, source: str | None) -> ImageRecord | None:
    """The images that a run began with, for its own data; None for other data and runs without a record."""
    file = Path(run) / RECORD
    return read_record(file) if source is None and file.exists() else None


def _open(
    config: DataConfig,
    record: ImageRecord | None,
    changed: Changed,
    task: TaskName = "classify",
    *,
    whole: bool = False,
) -> Splits:
    return open_data(
        config.spec,
        seed=config.split_seed or 0,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        record=record,
        changed=changed,
        stream=config.stream,
        task=task,
        whole=whole,
    )


def _print_result(result: Evaluation, split: str, kind: str, *, skipped: int) -> None:
    print(f"{split}: {headline(result, kind)}, loss {result.loss:.4f}")
    if skipped:
        print(f"{skipped} {kind}s could not be decoded and are left out")
    header, rows = result.table(kind)
    print(table(header, rows, right=range(1, len(header))))
