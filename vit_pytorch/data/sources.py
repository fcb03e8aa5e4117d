"""From a word on the command line to checked splits."""

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode

import numpy as np
import torch

from vit_pytorch.data.datasets import (
    ArrayImages,
    FileImages,
    ImageDataset,
    Splits,
    TaskName,
    split_off,
    warn_of_names,
)
from vit_pytorch.data.folders import read_folders, read_tree, unfit_for_classes
from vit_pytorch.data.hub import read_hub
from vit_pytorch.data.idx import read_idx_folder
from vit_pytorch.data.listing import describe_left_out, likely_path
from vit_pytorch.data.media import VideoFiles, VolumeFiles
from vit_pytorch.data.record import ImageRecord, restore_splits
from vit_pytorch.data.shards import ShardImages, read_shards
from vit_pytorch.data.stream import StreamConfig, open_stream
from vit_pytorch.data.tables import read_table

TABLE_OPTIONS = ("image", "label", "split")
# options of a table in addition to its columns
SEPARATOR, ROOT = "separator", "root"
CSV_OPTIONS = (*TABLE_OPTIONS, SEPARATOR, ROOT)
Changed = Literal["stop", "keep"]
FILES: dict[str, type[FileImages]] = {"folder": FileImages, "video": VideoFiles, "nifti": VolumeFiles}


def open_data(
    spec: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    record: ImageRecord | None = None,
    changed: Changed = "keep",
    unlabelled: bool = False,
    stream: StreamConfig | None = None,
    task: TaskName = "classify",
    whole: bool = False,
) -> Splits:
    """Open a dataset that is named by one string.

    - ``digits``: the 1797 digits (8 x 8, grey) that scikit-learn ships; its ``train_test_split`` with
      ``stratify`` and the seed holds the test part out.
    - ``FOLDER`` or ``folder:FOLDER``: a folder per class, perhaps below folders of splits: ``train`` or
      ``training``; ``val``, ``valid``, ``validation`` or ``dev``; ``test`` or ``testing``; in any case.
    - ``idx:FOLDER``: IDX files of the MNIST family, gzipped or not; ``t10k`` or ``test`` is the test split.
    - ``hf:NAME``: Hugging Face ``datasets``, by a name on the Hub or a local folder; options follow as
      ``?config=NAME&image=COLUMN&label=COLUMN``.
    - ``wds:TRAIN[,VAL[,TEST]]``: WebDataset shards, each a pattern such as ``data/train-{000..003}.tar`` or
      ``data/val-*.tar``. ``wds:TRAIN,,TEST`` has no shards for validation.
    - ``stream:PATTERN``: WebDataset shards as a stream, from local paths, over HTTP(S) or from a command (see
      `open_stream`).
    - ``csv:FILE``: a table of image files, by pandas, or a pattern of tables; columns that have no usual
      names follow as ``?image=COLUMN&label=COLUMN&split=COLUMN``, what stands between several labels of a
      cell as ``separator``, and the folder that paths are relative to as ``root``.
    - ``video:FOLDER``: videos, in folders like those of images.
    - ``nifti:FOLDER``: volumes in NIfTI files (``.nii``, ``.nii.gz``), likewise.

    What the data does not split by itself is split by class: first the test part (not for data that comes
    with a validation or test part), then the validation part of what is left. Images with rows of targets
    are split at random, from the seed.

    Args:
        spec: The data.
        seed: Chooses the images of splits made here, and nothing else.
        val_fraction: Part of each class that is held out for validation.
        test_fraction: Part of each class that is held out as the test split; 0 for none.
        record: What a run has recorded of its images: the splits are those of the run.
        changed: Whether data that have changed since they were recorded are an error; or a warning names what
            has changed, and images that are not the recorded ones are in no split.
        unlabelled: Whether images need no labels: a folder may be any tree of images, and shards may hold
            images only. Where there are no labels to measure features by, none are read, ``classes`` is
            empty, and no test split is made; ``unlabelled`` says why.
        stream: What a stream does not say by itself.
        task: What is learned of the images.
        whole: Whether nothing is learned from the data, so that they are not split here, and need no training
            split: see `Splits.measured`.

    Returns:
        The splits. What is left out of a folder (links to nothing or back to a folder that is there already,
        pipes, devices, files of other types) is named in a warning and in ``left_out``.

    Raises:
        ValueError: The data is not what the form promises; the message names the file or class. Or images of
            the record are gone, so that a split has none left; or they have changed, and `changed` is `stop`.
        FileNotFoundError: The folder does not exist.
    """
    kind, separator, rest = spec.partition(":")
    if not spec.strip() or (separator and not rest):
        raise ValueError(f"the name of the data must not be empty, got {spec!r}")
    stream = stream or StreamConfig()
    if kind == "stream" and separator:
        splits = open_stream(rest, stream, labelled=not unlabelled)
        warn_of_names(splits.classes)
        return splits
    if stream.given:
        raise ValueError(f"{', '.join(stream.given)} are for stream: data, got {spec}")
    left_out: dict[str, list[Path]] = {}
    root = reason = ""
    if task != "classify" and not (kind == "csv" and separator):
        raise ValueError(f"task {task} learns from a table, csv:FILE, got {spec}")
    if spec == "digits":
        parts: dict[str, ImageDataset] = {**_digits(seed, 0 if record is not None else test_fraction)}
        classes = tuple(str(i) for i in range(10))
    elif kind == "idx" and separator:
        folder = _existing_folder(rest)
        root = os.path.join(folder, "")
        read = partial(read_idx_folder, folder, needs_train=not whole)
        parts, classes, reason = _read_labels(read, needed=not unlabelled)
    elif kind == "hf" and separator:
        name, options = split_options(rest, kind, ("config", "image", "label"))
        hub = partial(read_hub, name, needs_train=not whole, **options)  # type: ignore[arg-type]
        parts, classes, reason = _read_labels(hub, needed=not unlabelled)
        root = f"hf:{name}"
    elif kind == "csv" and separator:
        name, options = split_options(rest, kind, CSV_OPTIONS)
        table = Path(name).expanduser()
        listed, classes = read_table(
            table, **options, task=task, needs_labels=not unlabelled, needs_train=not whole
        )
        if unlabelled:
            reason = unfit_for_classes(listed, classes) if classes else f"{name} has no label column"
        if reason:
            listed, classes = {split: FileImages(images.paths) for split, images in listed.items()}, ()
        parts, root = dict(listed), os.path.join(Path(options.get(ROOT, table.parent)).expanduser(), "")
    elif kind == "wds" and separator:
        parts, classes, reason = _read_labels(partial(_shard_parts, rest), needed=not unlabelled)
        root = _common_folder(parts)
    else:
        named = kind in FILES and bool(separator)
        files = FILES[kind] if named else FileImages
        folder = _existing_folder(rest if named else spec)
        root = os.path.join(folder, "")
        if unlabelled:
            folders, classes, listing, reason = read_tree(folder, files)
        else:
            folders, classes, listing = read_folders(folder, files, needs_train=not whole)
        parts, left_out = dict(folders), listing.left_out
        if left_out:
            warnings.warn(f"left out of {spec}: {describe_left_out(left_out)}", stacklevel=2)
    for images in parts.values():
        images.root = root
    if record is None:
        splits = _complete(
            parts,
            classes,
            task,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=0 if reason else test_fraction,
            whole=whole,
        )
    else:
        splits, changes = restore_splits(parts, classes, record, task)
        if changes and changed == "stop":
            raise ValueError(
                f"{spec} has changed since its images were recorded: {changes}; to go on with those that are "
                "the same, in the splits of the run, pass `keep` (vit train --data.changed keep, "
                "vit evaluate --changed keep)"
            )
        if changes:
            warnings.warn(f"{spec} has changed since its images were recorded: {changes}", stacklevel=2)
    if task != "regression":
        warn_of_names(splits.classes)
    for split in (splits.train, splits.val, splits.test):
        if split is not None:
            split.root = root
    return replace(splits, left_out=left_out, unlabelled=reason)


def absolute_source(spec: str) -> str:
    """Return the name of a dataset with absolute paths, so that it means the same in any folder."""
    kind, separator, rest = spec.partition(":")
    if spec == "digits":
        return spec
    name, mark, query = rest.partition("?")
    if kind == "csv" and separator:
        _, options = split_options(rest, kind, CSV_OPTIONS)
        if ROOT in options:
            query = urlencode(options | {ROOT: _absolute(options[ROOT])})
        return f"csv:{_absolute(name)}{mark}{query}"
    if kind == "hf" and separator:
        return f"hf:{_absolute(name)}{mark}{query}" if Path(name).exists() else spec
    if kind == "wds" and separator:
        pieces = split_patterns(rest)
        return f"wds:{','.join(str(Path(piece).absolute()) if piece else '' for piece in pieces)}"
    if kind == "stream" and separator:
        return spec if "://" in rest or rest.startswith("pipe:") else f"stream:{_absolute(rest)}"
    if kind in ("idx", *FILES) and separator:
        return f"{kind}:{_absolute(rest)}"
    return _absolute(spec)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def split_options(rest: str, kind: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split the name of data from the options that follow it after a question mark."""
    name, _, query = rest.partition("?")
    options = {key: values[-1] for key, values in parse_qs(query, strict_parsing=bool(query)).items()}
    if unknown := options.keys() - set(known):
        listed = " and ".join([", ".join(known[:-1]), known[-1]])
        raise ValueError(f"options of {kind}: are {listed}, got {', '.join(sorted(unknown))}")
    return name, options


def with_columns(spec: str, columns: Mapping[str, str | None]) -> str:
    """Return the name of a dataset with names of columns as its options.

    Args:
        spec: The data, as `open_data` takes it.
        columns: Columns by their role, `image`, `label` or `split`, and other options of a table; None for
            those that are found by name, or left out.

    Raises:
        ValueError: The data are not in columns.
    """
    given = {role: name for role, name in columns.items() if name is not None}
    if given and not spec.startswith(("csv:", "hf:")):
        raise ValueError(f"columns are those of csv: and hf: data, got {spec} with {', '.join(given)}")
    return spec + ("&" if "?" in spec else "?") * bool(given) + urlencode(given)


def is_table(spec: str) -> bool:
    """Return whether data are a table, `csv:FILE`."""
    return spec.startswith("csv:")


def shared_columns(known: str, spec: str) -> dict[str, str]:
    """Return the options of one table, but for its root, that hold for another that does not give its own.

    Args:
        known: Data that options are known of, as `open_data` takes it.
        spec: Other data.
    """
    if not (is_table(known) and is_table(spec)):
        return {}
    (_, theirs), (_, own) = (split_options(data[4:], "csv", CSV_OPTIONS) for data in (known, spec))
    return {role: name for role, name in theirs.items() if role not in (*own, ROOT)}


def split_patterns(patterns: str) -> list[str]:
    """Split patterns of shards at the commas between them, not at those in braces."""
    return re.split(r",(?![^{}]*\})", patterns)


def _complete(
    parts: dict[str, ImageDataset],
    classes: tuple[str, ...],
    task: TaskName,
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    whole: bool,
) -> Splits:
    if whole:
        measured = ("test",) if [*parts] == ["train"] else tuple(parts)
        any_part = next(iter(parts.values()))
        return Splits(
            classes=classes,
            train=parts.get("train", any_part),
            val=parts.get("val", parts.get("test", any_part)),
            test=parts.get("test", any_part),
            task=task,
            measured=measured,
        )
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    if len(parts) == 1 and test_fraction != 0:
        train, test = split_off(train, test_fraction, seed, classes, purpose="test")
    if val is None:
        train, val = split_off(train, val_fraction, seed, classes, purpose="validation")
    return Splits(classes=classes, train=train, val=val, test=test, task=task)


def _digits(seed: int, test_fraction: float) -> dict[str, ArrayImages]:
    """The digits; the test part is that of scikit-learn's own function, so that others' figures compare."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    whole = ArrayImages(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(digits.target).long(), origin="digits"
    )
    if not test_fraction:
        return {"train": whole}
    if not 0 < test_fraction < 1:
        raise ValueError(f"the test fraction must be between 0 and 1, got {test_fraction}")
    train, test = train_test_split(
        np.arange(len(whole)), test_size=test_fraction, stratify=digits.target, random_state=seed
    )
    return {
        name: whole.subset(torch.from_numpy(np.sort(part)))
        for name, part in (("train", train), ("test", test))
    }


def _existing_folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no such folder: {name}{likely_path(folder)} (data is digits, FOLDER, csv:FILE, idx:FOLDER, "
            "hf:NAME, wds:PATTERN, stream:PATTERN, video:FOLDER or nifti:FOLDER)"
        )
    return folder


def _common_folder(parts: Mapping[str, ImageDataset]) -> str:
    """Return the folder that all shards are in, with a separator at its end; empty if there is none."""
    shards = {
        shard.parent for part in parts.values() if isinstance(part, ShardImages) for shard in part.shards
    }
    return os.path.join(shards.pop(), "") if len(shards) == 1 else ""


def _read_labels(
    read: Callable[..., tuple[Mapping[str, ImageDataset], tuple[str, ...]]], *, needed: bool
) -> tuple[dict[str, ImageDataset], tuple[str, ...], str]:
    """Read data with their labels, or without where these are not needed and none to measure features by.

    Args:
        read: Returns images by split, and classes; without labels if it is called with ``labelled=False``.
        needed: Whether there must be labels.

    Returns:
        Images by split, classes, and why there are none; empty where there are.
    """
    try:
        parts, classes = read()
        reason = "" if needed else unfit_for_classes(parts, classes)
    except ValueError as error:
        if needed:
            raise
        reason = str(error)
    if reason:
        parts, classes = read(labelled=False)
    return dict(parts), classes, reason


def _shard_parts(patterns: str, *, labelled: bool = True) -> tuple[dict[str, ImageDataset], tuple[str, ...]]:
    pieces = split_patterns(patterns)
    if len(pieces) > 3 or not pieces[0] or not pieces[-1]:
        empty = ", of which one is empty" * ("" in pieces)
        raise ValueError(f"wds: takes patterns for train, val and test, got {len(pieces)}{empty}: {patterns}")
    train, classes = read_shards(pieces[0], labelled=labelled)
    parts: dict[str, ImageDataset] = {"train": train}
    for name, piece in zip(("val", "test"), pieces[1:], strict=False):
        if piece:
            parts[name], _ = read_shards(piece, classes, labelled=labelled)
    return parts, classes
