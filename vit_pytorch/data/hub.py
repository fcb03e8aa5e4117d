"""Images of the Hugging Face ``datasets`` library: names on the Hub, saved datasets, folders and Parquet."""

import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from vit_pytorch.data.datasets import ImageDataset
from vit_pytorch.data.decode import BadImageError, decode_image, open_regular, read_values
from vit_pytorch.data.folders import match_splits
from vit_pytorch.data.listing import likely_path
from vit_pytorch.extras import install_command


class HubImages(ImageDataset):
    """Images of one split, decoded here and not by the ``datasets`` library.

    Args:
        rows: The split, whose image column is not decoded.
        column: The image column.
        labels: The class of each row.
        origin: What messages call the split.
        positions: The row of each image, where this is a part of the split.
    """

    def __init__(
        self,
        rows: Any,
        column: str,
        labels: Int64[Tensor, "n"],
        *,
        origin: str,
        positions: Int64[Tensor, "n"] | None = None,
    ) -> None:
        super().__init__(labels, channels=3)
        self.rows = rows
        self.column = column
        self.origin = origin
        self.positions = torch.arange(len(labels)) if positions is None else positions

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "c h w"]:
        """Return one image, values 0 to 255, with the number of channels that is asked for."""
        return decode_image(self._source(index), channels=channels, name=self.name(index), window=window)

    def values(self, index: int, channels: int) -> Shaped[Tensor, "c h w"]:
        """Return one image with the values that its file has."""
        return read_values(self._source(index), channels=channels, name=self.name(index))

    def _source(self, index: int) -> bytes | Path:
        entry = self.rows[int(self.positions[index])][self.column]
        if entry is None or (entry["bytes"] is None and not entry["path"]):
            raise BadImageError(self.name(index), "the row has no image")
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"])

    def name(self, index: int) -> str:
        """Return the path, or place, of one image."""
        return f"{self.origin}[{int(self.positions[index])}]"

    def stored(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open the file of one image, which may lie in the table."""
        source = self._source(index)
        return open_regular(source) if isinstance(source, Path) else io.BytesIO(source)

    def stored_bytes(self) -> int:
        """Return the size of the tables that the rows are from."""
        return int(self.rows.data.nbytes)

    def subset(self, indices: Int64[Tensor, "m"]) -> "HubImages":
        """Return the images at these indices, in this order."""
        return HubImages(
            self.rows,
            self.column,
            self.labels[indices],
            origin=self.origin,
            positions=self.positions[indices],
        )


def read_hub(
    name: str,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    needs_train: bool = True,
    labelled: bool = True,
) -> tuple[dict[str, HubImages], tuple[str, ...]]:
    """Open a dataset and find its image and label columns by their types.

    Args:
        name: A name on the Hub, or a folder: saved by ``save_to_disk``, of Parquet files, or of images.
        config: The configuration, for datasets that have several.
        image: The image column, where there are several.
        label: The label column, where there are several.
        needs_train: Whether one of several splits must be for training.
        labelled: Whether rows must have labels; else none are read, and there are no classes.

    Returns:
        Those of the splits ``train``, ``val`` and ``test`` that it has (a dataset of one split is ``train``),
        and the names of its classes.

    Raises:
        ImportError: The library is not installed.
        ValueError: No column, or more than one, is of the type sought; there is no training split; or it is a
            file.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hf: data needs the datasets library: {install_command('data')}") from error

    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"hf:{name} is neither a folder nor a name on the Hub{likely_path(name)}")
    saved = any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json"))
    try:
        opened = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except IndexError as error:
        # what the library makes of a saved table without rows
        raise ValueError(f"hf:{name} has no rows in one of its splits") from error
    except (ValueError, OSError, KeyError, TypeError) as error:
        # the library names the data in some of its messages; pyarrow and json, below it, in none
        raise ValueError(f"hf:{name} cannot be opened: {error}") from error
    found = dict(opened) if isinstance(opened, dict) else {"train": opened}
    only, rows = next(iter(found.items()))
    alone = match_splits([only], f"hf:{name}")
    if len(found) == 1 and (needs_train or not alone):
        if alone.keys() - {"train"}:
            warnings.warn(
                f"hf:{name} has only the split {only!r}, which is divided for training", stacklevel=2
            )
        found = {"train": rows}
    names = match_splits([*found], f"hf:{name}")
    if not names or (needs_train and "train" not in names):
        wanted = "a split named 'train'" if needs_train else "splits named train, val or test"
        raise ValueError(f"hf:{name} must have {wanted}, got {', '.join(map(repr, found))}")
    chosen = {split: found[theirs] for split, theirs in names.items()}
    if unused := [theirs for theirs in found if theirs not in names.values()]:
        warnings.warn(f"hf:{name}: left out the splits {', '.join(map(repr, unused))}", stacklevel=2)

    if empty := [theirs for split, theirs in names.items() if not len(chosen[split])]:
        raise ValueError(f"hf:{name} has no rows in the split {empty[0]!r}")
    known = [chosen["train"]] if needs_train else [*chosen.values()]
    features = known[0].features
    image = _column(name, features, image, "image", datasets.Image)
    named = label is not None
    label = _column(name, features, label, "label", datasets.ClassLabel) if labelled or named else ""
    for split, rows in chosen.items():
        if lacking := [column for column in (image, label) if column and column not in rows.column_names]:
            raise ValueError(
                f"hf:{name}[{split}] has no column {lacking[0]!r}; it has "
                f"{', '.join(map(repr, rows.column_names))}"
            )
        if labelled:
            _check_labels(rows[label], f"hf:{name}[{split}]", label)
    classes: tuple[str, ...] = ()
    if labelled:
        classes = _class_names(features[label], [value for rows in known for value in rows[label]])
    splits = {}
    for split, rows in chosen.items():
        labels, origin = torch.full((len(rows),), -1), f"hf:{name}[{split}]"
        if labelled:
            labels = _label_indices(rows[label], rows.features[label], classes, origin)
        rows = rows.cast_column(image, datasets.Image(decode=False))
        splits[split] = HubImages(rows, image, labels, origin=origin)
    return splits, classes


def _column(name: str, features: Any, wanted: str | None, role: str, kind: type) -> str:
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"hf:{name} has no column {wanted!r}; it has {', '.join(map(repr, features))}")
        return wanted
    fitting = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(fitting) == 1:
        return fitting[0]
    if role in features and (role in fitting or (not fitting and role == "label")):
        return role
    listed = ", ".join(f"{column}: {type(feature).__name__}" for column, feature in features.items())
    raise ValueError(
        f"hf:{name} must have one column of type {kind.__name__}, got {len(fitting)} among {listed}; "
        f"name it with hf:{name}?{role}=COLUMN"
    )


def _is_label(value: Any) -> bool:
    """Return whether a value is an index from 0 on, or a name."""
    if isinstance(value, float):
        return value.is_integer() and value >= 0
    return bool(value.strip()) if isinstance(value, str) else isinstance(value, int) and value >= 0


def _check_labels(values: Sequence[Any], origin: str, column: str) -> None:
    """Check that each row has a label: -1 stands for none in data whose labels are held back."""
    wrong = [row for row, value in enumerate(values) if not _is_label(value)]
    if wrong:
        value = list(values)[wrong[0]]
        raise ValueError(
            f"{origin}[{wrong[0]}] has the label {value!r} in the column {column!r}"
            + (f", and {len(wrong) - 1} more rows have none" if len(wrong) > 1 else "")
            + "; every row must have an index or a name: name another column by ?label=COLUMN, or leave "
            "such rows out"
        )


def _class_names(feature: Any, values: Sequence[Any]) -> tuple[str, ...]:
    """Names of a ClassLabel; of a plain column, the values that occur in training, sorted."""
    names = getattr(feature, "names", None)
    return tuple(names) if names is not None else tuple(str(value) for value in sorted(set(values)))


def _label_indices(
    values: Sequence[Any], feature: Any, classes: tuple[str, ...], origin: str
) -> Int64[Tensor, "n"]:
    if getattr(feature, "names", None) is not None:
        if tuple(feature.names) != classes:
            raise ValueError(
                f"{origin} must have the classes of training {classes}, got {tuple(feature.names)}"
            )
        labels = torch.tensor(list(values), dtype=torch.long)
        wrong = (labels >= len(classes)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(f"{origin}[{row}] has the label {labels[row]}, of {len(classes)} classes")
        return labels
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted({str(value) for value in values} - index.keys())
    if unknown:
        raise ValueError(f"{origin} has the label {unknown[0]!r}, which training does not have")
    return torch.tensor([index[str(value)] for value in values], dtype=torch.long)
