"""A table of image files: a row an image, with columns for its path, its label and perhaps its split."""

import glob
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from vit_pytorch.data.datasets import FileImages, TaskName
from vit_pytorch.data.folders import match_splits
from vit_pytorch.data.listing import likely_path
from vit_pytorch.extras import install_command

# names of columns that are found by themselves, in any case
IMAGE = ("image", "path", "file", "filename", "file_name", "filepath", "image_path")
LABEL = ("label", "class", "target", "category")
SPLIT = ("split", "set", "subset")
# what such a column is called where a cell holds several labels
LABELS = (*LABEL, "labels", "tags")
TABS = (".tsv", ".tab")
PARQUET = (".parquet", ".pq")
# what stands between labels, as a rule
SEPARATORS = "|;,/+"
# characters of a header that are looked at for its separator
LONGEST_HEADER = 2**20


class Labels(NamedTuple):
    """What the label columns of a table say.

    Args:
        names: Classes, labels or values, in order.
        targets: The class of each row, or its targets.
        faults: What is wrong with a row, to follow its number; empty where nothing is.
    """

    names: tuple[str, ...]
    targets: Shaped[Tensor, "n *k"]
    faults: list[str]


def read_table(
    file: Path,
    *,
    image: str | None = None,
    label: str | None = None,
    split: str | None = None,
    separator: str = "|",
    root: str | None = None,
    task: TaskName | None = "classify",
    needs_labels: bool = True,
    needs_train: bool = True,
) -> tuple[dict[str, FileImages], tuple[str, ...]]:
    """List the images of a table, whose first row names its columns.

    Args:
        file: The table: Parquet where it ends in ``.parquet``, separated by tabs where in ``.tsv`` or
            ``.tab``, else by commas, or by semicolons or tabs where the header has these and no comma. Or a
            pattern of such tables, which are one.
        image: The column of paths; the only one with a usual name if left out.
        label: The column of labels; likewise. Of a regression one column of numbers, or several with commas
            between.
        split: The column of splits, whose values are those that folders of splits may have; likewise, or all
            images are for training.
        separator: What stands between several labels in a cell.
        root: What relative paths begin at; the folder of the (first) table if left out.
        task: What is learned of the images; None reads no labels.
        needs_labels: Whether the table must have a column of labels.
        needs_train: Whether images must be there for training, which then know all labels.

    Returns:
        The images of each split in the order of their rows; and the classes that occur in training, sorted by
        number where all are numbers, else by name, or empty where there is no column of labels. Of other
        tasks the labels, likewise, or the columns of numbers.

    Raises:
        ImportError: Pandas, or for Parquet pyarrow, is not installed.
        FileNotFoundError: There is no such table.
        ValueError: The table cannot be read, a column is missing, or rows cannot be used: all of them are
            named.
    """
    files = _find_tables(file)
    rows = _read_rows(files)
    columns = {
        "image": _find(file, rows.columns, image, "image", IMAGE),
        "split": _find(file, rows.columns, split, "split", SPLIT, optional=True),
    }
    chosen = (
        [] if task is None else _label_columns(file, rows.columns, label, task, optional=not needs_labels)
    )
    if not len(rows):
        raise ValueError(f"{file} has no rows")
    cells = {role: _texts(rows[name], separator) for role, name in columns.items() if name is not None}
    splits = cells.get("split", ["train"] * len(rows))
    named = match_splits(sorted(set(splits)), str(file))
    if needs_train and "train" not in named:
        raise ValueError(f"{file} has no rows whose split is 'train'")
    labels = Labels((), torch.full((len(rows),), -1), [""] * len(rows))
    if chosen:
        training = [not needs_train or own == named["train"] for own in splits]
        columns_read = [_texts(rows[name], separator) for name in chosen]
        if task == "regression":
            labels = _numbers(chosen, columns_read)
        elif task == "multilabel":
            labels = _several(columns_read[0], training, separator)
        else:
            labels = _classes(columns_read[0], training)
    folder = _root(files, root)
    split_of = {theirs: ours for ours, theirs in named.items()}
    return _parts(
        file, folder, cells["image"], [split_of.get(own, own) for own in splits], labels
    ), labels.names


def read_column(
    file: Path,
    column: str,
    *,
    image: str | None = None,
    root: str | None = None,
    separator: str = "|",
    **others: str,
) -> dict[Path, str]:
    """Return what a column of a table says of each image, by its path; see `read_table`.

    Raises:
        FileNotFoundError: There is no such table.
        ValueError: The table has no such column.
    """
    files = _find_tables(file)
    rows = _read_rows(files)
    paths = _texts(rows[_find(file, rows.columns, image, "image", IMAGE)], separator)
    values = _texts(rows[_find(file, rows.columns, column, column, ())], separator)
    folder = _root(files, root)
    return {folder / Path(path).expanduser(): value for path, value in zip(paths, values, strict=True)}


def _find_tables(file: Path) -> list[Path]:
    found = [file] if file.is_file() else [Path(name) for name in sorted(glob.glob(str(file)))]
    # not pipes, which are read once, nor devices, which have no end
    files = [path for path in found if path.is_file()]
    if not files:
        raise FileNotFoundError(f"no such table: {file}" + " (it is no regular file)" * bool(found))
    return files


def _root(files: Sequence[Path], root: str | None) -> Path:
    """Return what relative paths begin at."""
    return files[0].parent if root is None else Path(root).expanduser()


def _read_rows(files: Sequence[Path]) -> Any:
    """Read tables as one; cells of text tables are text, and `NA` is a label like any other."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"csv: data needs pandas: {install_command('data')}") from error
    read = []
    for file in files:
        kind = file.suffix.lower()
        try:
            if kind in PARQUET:
                table = pandas.read_parquet(file)
                # columns that pandas keeps as the names of rows
                read.append(table.reset_index() if any(table.index.names) else table)
            else:
                options: dict[str, Any] = {
                    **({"sep": "\t"} if kind in TABS else _separated(file)),
                    "encoding": "utf-8-sig",
                    "index_col": False,
                    "dtype": str,
                    "keep_default_na": False,
                }
                header = Counter(pandas.read_csv(file, header=None, nrows=1, **options).iloc[0])
                if twice := [name for name, times in header.items() if name.strip() and times > 1]:
                    raise ValueError(f"the column {twice[0]!r} stands twice")
                with warnings.catch_warnings():
                    # of cells that no column has
                    warnings.simplefilter("error", pandas.errors.ParserWarning)
                    read.append(pandas.read_csv(file, **options))
        except ImportError as error:
            raise ImportError(f"Parquet tables need pyarrow: {install_command('data')}") from error
        except pandas.errors.ParserWarning as error:
            raise ValueError(f"{file} has rows with more cells than its header has columns") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file} cannot be read as a table: it is not UTF-8 ({error}); unpack it if it is "
                "packed, else save it as such, in Excel as 'CSV UTF-8'"
            ) from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{file} cannot be read as a table: {error}") from error
        if list(read[-1].columns) != list(read[0].columns):
            raise ValueError(
                f"tables that are one must have the same columns; {files[0]} has "
                f"{', '.join(map(repr, read[0].columns))}, {file} {', '.join(map(repr, read[-1].columns))}"
            )
    return read[0] if len(read) == 1 else pandas.concat(read, ignore_index=True)


def _separated(file: Path) -> dict[str, Any]:
    """Return how pandas reads a table: by the separator that a first line `sep=;` names, which spreadsheets
    write and leave out of the table; else by the first of comma, semicolon and tab that the header has."""
    with file.open(encoding="utf-8-sig") as lines:
        header = lines.readline(LONGEST_HEADER)
    if named := re.fullmatch(r'"?sep=(.)"?\n', header):
        return {"sep": named[1], "skiprows": 1}
    return {"sep": next((separator for separator in ",;\t" if separator in header), ",")}


def _texts(column: Any, separator: str) -> list[str]:
    """Return cells as text; those of Parquet may be numbers, lists or empty.

    Raises:
        ValueError: Cells hold bytes that are no text, or parts with names, such as the images themselves.
    """
    from pandas import NA

    def text(cell: Any) -> str:
        with suppress(UnicodeDecodeError):
            cell = cell.decode() if isinstance(cell, bytes) else cell
        if isinstance(cell, bytes | Mapping):
            raise ValueError(
                f"the column {column.name!r} must hold text, numbers or lists of them, got "
                f"{'bytes' if isinstance(cell, bytes) else 'parts with names'}; hf:FOLDER reads tables that "
                "hold the images themselves"
            )
        if isinstance(cell, str):
            return cell.strip()
        if hasattr(cell, "__iter__"):
            parts = [text(part) for part in cell]
            if within := [part for part in parts if separator and separator in part]:
                raise ValueError(
                    f"lists in the column {column.name!r} must hold names without {separator!r}, got "
                    f"{within[0]!r}: choose another separator (data.label_separator)"
                )
            return separator.join(parts)
        # NaN differs from itself, pandas' NA says neither; whole numbers beside empty cells are floats
        if cell is None or cell is NA or cell != cell:
            return ""
        return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)

    return [text(cell) for cell in column.tolist()]


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


def _label_columns(
    file: Path, columns: Collection[str], wanted: str | None, task: TaskName, *, optional: bool
) -> list[str]:
    """Return the columns of labels: one, or of a regression perhaps several with commas between."""
    several = wanted is not None and "," in wanted and wanted not in columns
    if several and task != "regression":
        cells = ", whose cells hold several with a separator between" * (task == "multilabel")
        raise ValueError(f"{file}: task {task} takes one column of labels{cells}; got {wanted}")
    pieces: list[str | None] = [*(wanted or "").split(",")] if several else [wanted]
    names = LABELS if task == "multilabel" else LABEL
    found = [_find(file, columns, piece, "label", names, optional=optional) for piece in pieces]
    if len(set(found)) < len(found):
        raise ValueError(f"columns of labels must differ, got {wanted}")
    return [name for name in found if name is not None]


def _classes(cells: Sequence[str], training: Sequence[bool]) -> Labels:
    """Read one class a row."""
    names = _sorted({cell for cell, known in zip(cells, training, strict=True) if known and cell})
    _warn_of_several(names, "classes", "--task multilabel learns several labels of an image")
    index = {name: number for number, name in enumerate(names)}
    faults = [
        _several_lines(cell) or _unknown({cell} - index.keys()) if cell else " has no label" for cell in cells
    ]
    return Labels(names, torch.tensor([index.get(cell, -1) for cell in cells]), faults)


def _several_lines(cell: str) -> str:
    """Return what is wrong with a label of several lines: it holds all rows up to the next quotation mark."""
    return " has a label of several lines, as where a quotation mark is not closed" * ("\n" in cell)


def _warn_of_several(names: Collection[str], kind: str, advice: str, alone: bool = False) -> None:
    """Warn of a name that is made of others with a separator between, which is several labels as a rule.

    Args:
        names: Of classes or labels.
        kind: What they are.
        advice: What to do.
        alone: Whether no image has several: parts that two names share are then enough.
    """
    for separator in SEPARATORS:
        split = {name: {part.strip() for part in name.split(separator)} for name in names}
        times = Counter(part for parts in split.values() for part in parts)
        for name, parts in split.items():
            made = any(times[part] > 1 for part in parts) if alone else parts <= set(names)
            if separator in name and made:
                warnings.warn(f"{kind} such as {name!r} are made of others: {advice}", stacklevel=2)
                return


def _several(cells: Sequence[str], training: Sequence[bool], separator: str) -> Labels:
    """Read any number of labels a row; an empty cell is an image with none of them."""
    if not separator:
        raise ValueError("the separator of labels must not be empty")
    sets = [{part.strip() for part in cell.split(separator)} - {""} for cell in cells]
    names = _sorted(set().union(*(labels for labels, known in zip(sets, training, strict=True) if known)))
    if written := [name for name in names if re.fullmatch(r"\[.*\]|\{.*\}|\(.*['\"].*\)", name)]:
        raise ValueError(
            f"labels must be names with {separator!r} between (data.label_separator), not written lists, got "
            f"{written[0]!r}"
        )
    alone = max(map(len, sets)) < 2
    _warn_of_several(names, "labels", f"what separates them is {separator!r} (data.label_separator)", alone)
    index = {name: number for number, name in enumerate(names)}
    targets = torch.zeros(len(cells), len(names))
    for row, labels in enumerate(sets):
        for name in labels & index.keys():
            targets[row, index[name]] = 1
    faults = [
        _several_lines(cell) or _unknown(labels - index.keys())
        for cell, labels in zip(cells, sets, strict=True)
    ]
    return Labels(names, targets, faults)


def _numbers(names: Sequence[str], columns: Sequence[Sequence[str]]) -> Labels:
    """Read a number for each row and column."""
    values = [[_number(cell) for cell in cells] for cells in columns]
    faults = [
        "".join(
            f": {name!r} must be a finite number{_with_point(cell)}, got {cell!r}"
            for name, cell, value in zip(names, cells, found, strict=True)
            if not math.isfinite(value)
        )
        for cells, found in zip(zip(*columns, strict=True), zip(*values, strict=True), strict=True)
    ]
    exact = torch.tensor(values, dtype=torch.float64).T.contiguous()
    _check_precision(names, exact)
    return Labels(tuple(names), exact.float(), faults)


def _check_precision(names: Sequence[str], values: Float64[Tensor, "n k"]) -> None:
    """Check that values differ by enough, beside their size, for single precision.

    Raises:
        ValueError: Rounding them would change one by more than a thousandth of their standard deviation.
    """
    for name, column in zip(names, values.T, strict=True):
        known = column[column.isfinite()]
        spread = known.std(correction=0) if len(known) else 0
        if spread > 0 and (known - known.float()).abs().max() > 1e-3 * spread:
            raise ValueError(
                f"{name!r} has values from {known.min():.10g} to {known.max():.10g}, which single precision "
                "does not hold: subtract a constant from them, or change their unit"
            )


def _with_point(cell: str) -> str:
    """Return what to say of a number with a comma, which is one of decimals here and of thousands there."""
    return " without commas, its decimals after a point" * math.isfinite(_number(cell.replace(",", "")))


def _number(cell: str) -> float:
    try:
        # Python takes 1_0 for 10
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _unknown(labels: set[str]) -> str:
    return f": no training image has the label {', '.join(map(repr, sorted(labels)))}" if labels else ""


def _parts(
    file: Path, folder: Path, names: Sequence[str], splits: Sequence[str], labels: Labels
) -> dict[str, FileImages]:
    """Check the rows and sort them into splits."""
    faults: list[str] = []
    first: dict[Path, int] = {}
    folders: dict[Path, Path] = {}
    found: dict[str, list[tuple[Path, int]]] = defaultdict(list)
    for row, (name, own, fault) in enumerate(zip(names, splits, labels.faults, strict=True)):
        path = folder / Path(name).expanduser()
        real = _real_path(path, folders)
        if not name:
            faults.append(f"row {row + 1} names no image")
        elif not path.is_file():
            faults.append(f"row {row + 1}: no such file: {name}{likely_path(path)}")
        elif real in first:
            faults.append(f"row {row + 1}: the image of row {first[real]} again: {name}")
        elif own not in ("train", "val", "test"):
            faults.append(f"row {row + 1}: the split is none of train, val and test: {own!r}")
        elif fault:
            faults.append(f"row {row + 1}{fault}: {name}")
        else:
            found[own].append((path, row))
        first.setdefault(real, row + 1)
    if faults:
        raise ValueError(f"{file} has {len(faults)} rows that cannot be used:\n" + "\n".join(faults))
    return {
        split: FileImages([path for path, _ in members], labels.targets[[row for _, row in members]])
        for split, members in found.items()
    }


def _real_path(path: Path, folders: dict[Path, Path]) -> Path:
    """Return where a path leads to; `folders` keeps where those of other paths do, of which there are few."""
    if path.is_symlink():
        return path.resolve()
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    return folders[path.parent] / path.name


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """Sort labels by number where all are numbers, else by name."""
    numbers = all(label.isdecimal() for label in labels)
    return tuple(sorted(labels, key=lambda label: (int(label), label) if numbers else (0, label)))
