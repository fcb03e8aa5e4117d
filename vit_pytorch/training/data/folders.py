"""A folder per class, with or without folders for the splits above."""

import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import torch

from vit_pytorch.training.data.datasets import FileImages

# names of splits, in any case
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_WORDS = r"(train(ing|val)?|val(id(ation)?)?|dev(elopment)?|test(s|ing)?|eval(uation)?|(hold|held)[-_ ]?out)"
# `train2017`, `test_set`; and, where all folders end so, `cars_train`
_LIKE_SPLIT = re.compile(_WORDS + r"[-_. ]?(\d+|sets?|data|images?|splits?)?", re.IGNORECASE)
_ENDS_LIKE_SPLIT = re.compile(rf"(.*[-_. ])?{_WORDS}", re.IGNORECASE)


def match_splits(names: Sequence[str], where: str) -> dict[str, str]:
    """Return the names that stand for splits, by the split; a name counts in any case.

    Args:
        names: Names of folders, or of the parts of a data set.
        where: What messages call the data.

    Raises:
        ValueError: Two names stand for one split.
    """
    found: dict[str, str] = {}
    for split, aliases in SPLIT_NAMES.items():
        fitting = [name for name in names if name.lower() in aliases]
        if len(fitting) > 1:
            raise ValueError(
                f"{where} must have one part for {split}, got {' and '.join(map(repr, fitting))}: "
                "rename or remove all but one"
            )
        if fitting:
            found[split] = fitting[0]
    return found


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders of the splits `train`, `val` and `test`; empty if a folder holds classes.

    Raises:
        ValueError: There is no folder for training, there are folders beside those of the splits, or folders
            look like splits under names that are not known.
    """
    names = folder_names(folder)
    found = match_splits(names, str(folder))
    others = [name for name in names if name not in found.values()]
    cure = f"if they are classes, put all class folders into {folder / 'train'}"
    if found and "train" not in found:
        raise ValueError(f"{folder} has {' and '.join(found.values())}, but no folder 'train'; {cure}")
    if found and others:
        raise ValueError(
            f"{folder} must hold folders of splits or one folder per class, got {', '.join(found.values())} "
            f"beside {_few(others)}: remove what is no split; {cure}"
        )
    strange = [name for name in others if _LIKE_SPLIT.fullmatch(name)]
    if not strange and len(others) > 1 and all(_ENDS_LIKE_SPLIT.fullmatch(name) for name in others):
        strange = others
    if strange:
        raise ValueError(
            f"{folder} has folders that look like splits under names that are not known: {_few(strange)}; "
            f"splits are named train, val and test; {cure}"
        )
    return {split: folder / name for split, name in found.items()}


def folder_names(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def read_class_folders(
    folder: Path, classes: tuple[str, ...] | None = None, files: type[FileImages] = FileImages
) -> tuple[FileImages, tuple[str, ...]]:
    """List the images below a folder that has one folder per class.

    Args:
        folder: Its folders are the classes; images may lie at any depth below them.
        classes: The classes that it must have, if they are known from the training split.
        files: What the files are: images, videos or volumes.

    Returns:
        The images, ordered by class and path, and the classes, sorted by name.

    Raises:
        ValueError: There are no class folders, a class has no images, or the classes are not those expected;
            the message names the class.
    """
    found = tuple(folder_names(folder))
    if not found:
        raise ValueError(f"{folder} must hold one folder per class, got none")
    if classes is not None and found != classes:
        missing = ", ".join(repr(name) for name in classes if name not in found)
        extra = ", ".join(repr(name) for name in found if name not in classes)
        differences = [f"lacks {missing}"] * bool(missing) + [f"has besides {extra}"] * bool(extra)
        raise ValueError(
            f"{folder} must have the {len(classes)} classes of training, but {' and '.join(differences)}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(found):
        members = list(files_below(folder / name, files.extensions))
        if not members:
            raise ValueError(
                f"class {name!r} has no {files.kind}s: {folder / name} holds no file of a known type"
            )
        paths += members
        labels += [label] * len(members)
    return files(paths, torch.tensor(labels)), found


def files_below(folder: Path, extensions: Container[str]) -> Iterator[Path]:
    """Yield the files of some types at any depth below a folder, ordered by name, without hidden ones."""
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name[0] != "." and extension(name) in extensions:
                yield Path(root, name)


def extension(name: str) -> str:
    """Return the extension of a file's name in small letters, with that before a final ``.gz``."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last == ".gz" else last


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
