"""A table of image files: a row an image, with columns for its path, its label and perhaps its split."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from vit_pytorch.data.datasets import FileImages
from vit_pytorch.data.folders import match_splits
from vit_pytorch.extras import install_command

# names of columns that are found by themselves, in any case
IMAGE = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
LABEL = ("label", "class", "target", "category")
SPLIT = ("split", "set", "subset")


def read_table(
    file: Path,
    *,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    needs_labels: bool = True,
) -> tuple[dict[str, FileImages], tuple[str, ...]]:
    """List the images of a table, whose first row names its columns.

    Args:
        file: The table, separated by tabs where it ends in ``.tsv`` or ``.tab``, else by commas. Paths in it
            are absolute, or relative to its folder.
        image: The column of paths; the only one with a usual name if left out.
        label: The column of labels; likewise.
        split: The column of splits, whose values are those that folders of splits may have; likewise, or all
            images are for training.
        needs_labels: Whether the table must have a column of labels.

    Returns:
        The images of each split in the order of their rows; and the classes, sorted by number where all are
        numbers, else by name, or empty where there is no column of labels.

    Raises:
        ImportError: Pandas is not installed.
        FileNotFoundError: There is no such table.
        ValueError: The table cannot be read, a column is missing, or rows cannot be used: all of them are
            named.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"csv: data needs pandas: {install_command('data')}") from error
    if not file.is_file():
        raise FileNotFoundError(f"no such table: {file}")
    separator = "\t" if file.suffix.lower() in (".tsv", ".tab") else ","
    try:
        # as text, and `NA` is a label like any other
        rows = pandas.read_csv(
            file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False
        )
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as a table: {error}") from error
    columns = {
        "image": _find(file, rows.columns, image, "image", IMAGE),
        "label": _find(file, rows.columns, label, "label", LABEL, optional=not needs_labels),
        "split": _find(file, rows.columns, split, "split", SPLIT, optional=True),
    }
    values = {
        role: rows[name].fillna("").str.strip().tolist() for role, name in columns.items() if name is not None
    }
    return _parts(file, values)


def _find(
    file: Path,
    columns: Collection[str],
    wanted: str | None,
    role: str,
    names: Sequence[str],
    *,
    optional: bool = False,
) -> str | None:
    """Return the column of a role."""
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"{file} has no column {wanted!r}; it has {', '.join(map(repr, columns))}")
        return wanted
    fitting = [name for name in columns if name.strip().lower() in names]
    if len(fitting) == 1:
        return fitting[0]
    if optional and not fitting:
        return None
    raise ValueError(
        f"{file} must have one {role} column, named {', '.join(names)}; it has "
        f"{', '.join(map(repr, columns))}: name it by --data.{role}_column"
    )


def _parts(file: Path, values: dict[str, list[str]]) -> tuple[dict[str, FileImages], tuple[str, ...]]:
    """Check the rows and sort them into splits."""
    count = len(values["image"])
    if not count:
        raise ValueError(f"{file} has no rows")
    splits = values.get("split", ["train"] * count)
    named = match_splits(sorted(set(splits)), str(file))
    if "train" not in named:
        raise ValueError(f"{file} has no rows whose split is 'train'")
    split_of = {theirs: ours for ours, theirs in named.items()}
    labels = values.get("label", [""] * count)
    classes = _sorted({label for label, own in zip(labels, splits, strict=True) if own == named["train"]})
    index = {name: number for number, name in enumerate(classes)} if "label" in values else {"": -1}
    faults: list[str] = []
    first: dict[Path, int] = {}
    found: dict[str, list[tuple[Path, int]]] = defaultdict(list)
    for row, (name, label, own) in enumerate(zip(values["image"], labels, splits, strict=True), start=1):
        path = file.parent / Path(name).expanduser()
        if not name:
            faults.append(f"row {row} names no image")
        elif not path.is_file():
            faults.append(f"row {row}: no such file: {name}")
        elif path in first:
            faults.append(f"row {row}: the image of row {first[path]} again: {name}")
        elif "label" in values and not label:
            faults.append(f"row {row} has no label: {name}")
        elif own not in split_of:
            faults.append(f"row {row}: the split is none of train, val and test: {own!r}")
        elif label not in index:
            faults.append(f"row {row}: no training image has the label {label!r}")
        else:
            found[split_of[own]].append((path, index[label]))
        first.setdefault(path, row)
    if faults:
        raise ValueError(f"{file} has {len(faults)} rows that cannot be used:\n" + "\n".join(faults))
    parts = {
        split: FileImages([path for path, _ in members], torch.tensor([label for _, label in members]))
        for split, members in found.items()
    }
    return parts, classes if "label" in values else ()


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """Sort labels by number where all are numbers, else by name."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label)))
