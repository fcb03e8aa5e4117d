"""A folder per class, with or without folders for the splits above."""

import os
from collections.abc import Container, Iterator
from pathlib import Path

import torch

from vit_pytorch.training.data.datasets import FileImages


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
    found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
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
