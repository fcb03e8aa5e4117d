"""A folder per class, with or without folders for the splits above."""

import re
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import torch

from vit_pytorch.data.datasets import FileImages, ImageDataset
from vit_pytorch.data.listing import BESIDE_SPLITS, STRAY, TWICE, Listing

# names of splits, in any case
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_WORDS = r"(train(ing|val)?|val(id(ation)?)?|dev(elopment)?|test(s|ing)?|eval(uation)?|(hold|held)[-_ ]?out)"
# `train2017`, `trainA`, `test_set`; and, where all folders end so, `cars_train`
_LIKE_SPLIT = re.compile(
    _WORDS + r"[-_. ]?(\d+|sets?|data|images?|splits?|(?-i:(?<=[a-z])[A-Z]))?", re.IGNORECASE
)
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


def split_folders(folder: Path, *, needs_train: bool = True) -> dict[str, Path]:
    """Return the folders of the splits `train`, `val` and `test`; empty if a folder holds classes.

    Args:
        folder: The folder.
        needs_train: Whether one of them must be for training.

    Raises:
        ValueError: There is no folder for training, there are folders beside those of the splits, or folders
            look like splits under names that are not known.
    """
    names = folder_names(folder)
    found = match_splits(names, str(folder))
    others = [name for name in names if name not in found.values()]
    cure = f"if they are classes, put all class folders into {folder / 'train'}"
    if needs_train and found and "train" not in found:
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


def _check_not_split(folder: Path) -> None:
    """Check that class folders do not all hold the same folders and nothing else, as parts of a data set do.

    Raises:
        ValueError: They do, such as `fold1/cat`, `fold1/dog`, `fold2/cat`, `fold2/dog`.
    """
    parts = folder_names(folder)
    held: tuple[str, ...] | None = None
    for name in parts:
        inside = _folders_alone(folder / name)
        if len(inside) < 2 or held not in (None, inside):
            return
        held = inside
    if held is not None and len(parts) > 1:
        raise ValueError(
            f"{folder} has folders ({_few(parts)}) that all hold the same folders ({_few([*held])}): which "
            "of them are classes? Splits are named train, val and test; folders of classes may be put into "
            f"{folder / 'train'}"
        )


def _folders_alone(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in a folder; none if it holds files that are not hidden."""
    names = []
    for entry in folder.iterdir():
        if entry.name[0] != ".":
            if not entry.is_dir():
                return ()
            names.append(entry.name)
    return tuple(sorted(names))


def folder_names(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def read_folders(
    folder: Path, files: type[FileImages] = FileImages, *, needs_train: bool = True
) -> tuple[dict[str, FileImages], tuple[str, ...], Listing]:
    """List the images of a folder that has one folder per class, perhaps below folders of splits.

    Args:
        folder: The folder; images may lie at any depth below a class.
        files: What the files are: images, videos or volumes.
        needs_train: Whether folders of splits must be one for training, too.

    Returns:
        The images of each split (`train` if there are none), ordered by class and path; the classes, sorted
        by name; and the listing, which says what was left out.

    Raises:
        ValueError: The splits are not understood, there are no class folders, a class has no images to learn
            from, two folders are the same one, or a split has classes that training has not. A warning names
            the classes that a split has no images of.
        OSError: A folder cannot be listed.
    """
    listing = Listing(files.extensions, files.is_known)
    splits = split_folders(folder, needs_train=needs_train)
    if splits:
        listing.stray_files(folder, BESIDE_SPLITS)
    else:
        _check_not_split(folder)
        splits = {"train": folder}
    # Links from below to a folder above would bring everything in once more.
    roots = folder, *folder.resolve().parents
    for root in roots:
        listing.claim(root)
    for place in splits.values():
        before = listing.claim(place)
        if before is not None and place != folder:
            raise ValueError(f"{place} and {before} are the same folder")
    # All classes are claimed before any is searched, so that a link leads from none into another.
    above = {*roots, *splits.values()}
    names = {split: _claim_classes(place, above, listing) for split, place in splits.items()}
    classes = names["train"] if needs_train else tuple(sorted(set().union(*names.values())))
    for split, found in names.items():
        if extra := [name for name in found if name not in classes]:
            raise ValueError(
                f"{splits[split]} must have the {len(classes)} classes of training, but has besides "
                f"{', '.join(map(repr, extra))}"
            )
    parts = {}
    for split, place in splits.items():
        learned = split == "train" and needs_train
        parts[split] = _read_classes(place, names[split], classes, files, listing, all_needed=learned)
        if not len(parts[split]):
            raise ValueError(f"{place} holds no {files.kind}s: no file is of a known type")
        present = set(parts[split].labels.tolist())
        if lacking := [name for label, name in enumerate(classes) if label not in present]:
            warnings.warn(f"{place} has no {files.kind}s of {_few(lacking)}", stacklevel=3)
    return parts, classes, listing


def read_tree(
    folder: Path, files: type[FileImages] = FileImages
) -> tuple[dict[str, FileImages], tuple[str, ...], Listing, str]:
    """List the images of any tree of folders, with labels where it has one folder per class.

    Args:
        folder: The folder, perhaps with folders of splits below; images may lie at any depth.
        files: What the files are: images, videos or volumes.

    Returns:
        As `read_folders`, whose classes are empty where images have no labels; and the reason for that.

    Raises:
        ValueError: The splits are not understood, or there are no images for training.
        OSError: A folder cannot be listed.
    """
    splits = split_folders(folder)
    try:
        parts, classes, listing = read_folders(folder, files)
        strays = listing.left_out.get(STRAY, [])
        beside = f"images lie beside the class folders, such as {strays[0]}" if strays else ""
        reason = beside or unfit_for_classes(parts, classes)
    except ValueError as error:
        reason = str(error)
    if not reason:
        return parts, classes, listing, ""
    listing = Listing(files.extensions, files.is_known)
    if splits:
        listing.stray_files(folder, BESIDE_SPLITS)
    else:
        splits = {"train": folder}
    for above in (folder, *folder.resolve().parents):
        listing.claim(above)
    for place in splits.values():
        listing.claim(place)
    parts = {split: files(list(listing.files_below(place))) for split, place in splits.items()}
    if not len(parts["train"]):
        raise ValueError(f"{splits['train']} holds no {files.kind}s: no file is of a known type")
    return parts, (), listing, reason


def unfit_for_classes(parts: Mapping[str, ImageDataset], classes: Sequence[str]) -> str:
    """Say why labels are none to measure features by; empty where they are."""
    worst = max(int(images.labels.max()) for images in parts.values())
    if worst >= len(classes):
        return f"labels must be 0 to {len(classes) - 1} for {len(classes)} classes, got {worst}"
    present, counts = parts["train"].labels.unique(return_counts=True)
    if len(present) < 2:
        return f"there is one class, {classes[int(present[0])]!r}"
    # one image to train, and one for each split that is held out
    needed = 1 + ("val" not in parts) + (len(parts) == 1)
    if counts.min() < needed:
        few = classes[int(present[counts.argmin()])]
        return f"class {few!r} has {int(counts.min())} images, and {needed} are needed to hold some out"
    return ""


def _claim_classes(folder: Path, above: Container[Path], listing: Listing) -> tuple[str, ...]:
    """Return the names of the class folders, which are no two links to one, nor links to folders above."""
    classes: dict[str, Path] = {}
    for name in folder_names(folder):
        before = listing.claim(folder / name)
        if before is None:
            classes[name] = folder / name
        elif before in above:
            listing.leave_out(folder / name, TWICE)
        else:
            raise ValueError(f"{folder / name} and {before} are the same folder")
    if not classes:
        raise ValueError(f"{folder} must hold one folder per class, got none")
    return tuple(classes)


def _read_classes(
    folder: Path,
    names: Sequence[str],
    classes: Sequence[str],
    files: type[FileImages],
    listing: Listing,
    *,
    all_needed: bool,
) -> FileImages:
    paths: list[Path] = []
    labels: list[int] = []
    listing.stray_files(folder)
    for name in names:
        members = list(listing.files_below(folder / name))
        if all_needed and not members:
            raise ValueError(
                f"class {name!r} has no {files.kind}s: {folder / name} holds no file of a known type"
            )
        paths += members
        labels += [classes.index(name)] * len(members)
    return files(paths, torch.tensor(labels, dtype=torch.long))


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
