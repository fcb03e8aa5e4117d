"""A record of a run's images: data are compared with it, and the run's splits are restored from it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import torch

from vit_pytorch.data.datasets import ArrayImages, ImageDataset, Splits, TaskName
from vit_pytorch.data.decode import BadImageError, read_size
from vit_pytorch.storage import write_file

RECORD = "images.csv.gz"
COLUMNS = ("split", "class", "size", "digest", "name")
SPLITS = ("train", "val", "test")
# Files of more than this in all are known by parts of them, which takes a hundredth of the time.
LARGE = 2**30
END = 2**15
# between the ends, which volumes and arrays of one size may have in common: how many parts, and their bytes
PARTS, PART = 8, 2**12
# "ends" is that of runs of 0.1
Extent = Literal["whole", "parts", "ends"]
# size in bytes, and digest
Content = tuple[int, str]
UNREADABLE = "unreadable"
# names of a group of duplicates that a line shows
MOST = 4
# pixels that are decoded at most to find images of equal pixels, and how many of them a file counts as
DECODED, PIXELS_PER_FILE = 2**27, 2**14


class RecordedImage(NamedTuple):
    """One image of a run.

    Args:
        split: `train`, `val` or `test`.
        label: Name of its class; or its targets, with spaces between.
        size: Bytes.
        digest: BLAKE2b of 16 bytes, in hexadecimal, of the content or of its ends.
        name: Path below the data's folder, or place in the data.
    """

    split: str
    label: str
    size: int
    digest: str
    name: str

    @property
    def content(self) -> Content:
        """What two images of one content share."""
        return self.size, self.digest


@dataclass(frozen=True)
class ImageRecord:
    """The images of a run, in their order.

    Args:
        source: The data, as `open_data` names it.
        classes: Names of the classes, in order.
        extent: Whether digests are of the whole content, or of its first and last 32 KiB; of parts between
            them, too, or not.
        images: Those of the three splits.
    """

    source: str
    classes: tuple[str, ...]
    extent: Extent
    images: tuple[RecordedImage, ...]

    def write(self, file: Path) -> None:
        """Write the record as a compressed table, the same bytes for the same record."""
        text = io.StringIO()
        head = {"version": 1, "source": self.source, "classes": self.classes, "extent": self.extent}
        text.write(f"# {json.dumps(head)}\n")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(self.images)
        write_file(file, gzip.compress(text.getvalue().encode("utf-8", "surrogateescape"), mtime=0))


@dataclass(frozen=True)
class Changes:
    """How data differ from a record.

    Args:
        added: Names of images that the record does not have.
        removed: Names of images that the data do not have any more.
        changed: Names of images whose content is another.
        relabeled: Names of images that are in another class now.
        moved: Old and new names of images that are in another place, in the same class.
        resplit: Names of images that the data have in another split than the record.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    relabeled: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    resplit: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return any(getattr(self, name) for name in self.__dataclass_fields__)

    def __str__(self) -> str:
        """Describe the differences in one line, a few names each."""
        moved = tuple(f"{old} -> {new}" for old, new in self.moved)
        kinds = {
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "with another class or target": self.relabeled,
            "moved within a class": moved,
            "in another split": self.resplit,
        }
        return "; ".join(f"{kind} ({few(names)})" for kind, names in kinds.items() if names)


def record_images(splits: Splits, source: str) -> ImageRecord:
    """Record the images of splits: their names, sizes, contents, classes and splits.

    Args:
        splits: What `open_data` opened.
        source: The data's name.

    Returns:
        The record; a file that cannot be read has no size and no digest.
    """
    parts = {split: images for split in SPLITS if (images := getattr(splits, split)) is not None}
    extent: Extent = "whole" if sum(images.stored_bytes() for images in parts.values()) <= LARGE else "parts"
    return ImageRecord(source, splits.classes, extent, tuple(_fingerprints(parts, splits.classes, extent)))


def read_record(file: Path) -> ImageRecord:
    """Read what `ImageRecord.write` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of a later version.
    """
    try:
        text = gzip.decompress(file.read_bytes()).decode("utf-8", "surrogateescape")
        first, _, table = text.partition("\n")
        head = json.loads(first.removeprefix("# "))
        if head["version"] != 1:
            raise ValueError(f"its version is {head['version']}, 1 is known")
        header, *rows = csv.reader(io.StringIO(table))
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns must be {', '.join(COLUMNS)}, got {', '.join(header)}")
        images = tuple(
            RecordedImage(s, label, int(size), digest, name) for s, label, size, digest, name in rows
        )
        return ImageRecord(head["source"], tuple(head["classes"]), head["extent"], images)
    except (
        gzip.BadGzipFile,
        zlib.error,
        csv.Error,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise ValueError(f"{file} is no record of images: {error}") from error


def compare(record: ImageRecord, found: Iterable[RecordedImage], *, by_split: bool = True) -> Changes:
    """Compare the images of a record with those at hand.

    Args:
        record: The images of a run.
        found: Images at hand, of a record of the same extent.
        by_split: Whether to compare splits, too.
    """
    return _changes(*_pair(record.images, found), by_split=by_split)


def check_unchanged(record: ImageRecord, parts: Mapping[str, ImageDataset], source: str) -> None:
    """Check that images are still those of a record, of which some may have been left out since.

    Args:
        record: The images of a run.
        parts: Images at hand, by the split that they are in.
        source: What messages call the data.

    Raises:
        ValueError: The content or the class of one is another; names them.
    """
    recorded = [image for image in record.images if image.split in parts]
    pairs, _, added = _pair(recorded, _fingerprints(parts, record.classes, record.extent))
    found = _changes(pairs, (), added, by_split=False)
    if changes := replace(found, moved=()):
        raise ValueError(
            f"{source} has changed during the run, so that its figures would be of other images: {changes}; "
            "put them back, and --resume"
        )


Pairs = list[tuple[RecordedImage, RecordedImage]]


def _changes(
    pairs: Pairs, removed: Sequence[RecordedImage], added: Sequence[RecordedImage], *, by_split: bool
) -> Changes:
    """Describe the differences between paired images, and what has no pair."""
    return Changes(
        added=tuple(image.name for image in added),
        removed=tuple(image.name for image in removed),
        changed=tuple(new.name for old, new in pairs if old.content != new.content),
        relabeled=tuple(new.name for old, new in pairs if old.label != new.label),
        moved=tuple(
            (old.name, new.name) for old, new in pairs if old.name != new.name and old.label == new.label
        ),
        resplit=tuple(new.name for old, new in pairs if by_split and old.split != new.split),
    )


def _pair(
    recorded: Iterable[RecordedImage], found: Iterable[RecordedImage]
) -> tuple[Pairs, list[RecordedImage], list[RecordedImage]]:
    """Pair images by name and content, then by content and class, content, and name; return what is left."""
    pairs: Pairs = []
    left, fresh = list(recorded), list(found)
    rules: tuple[Callable[[RecordedImage], tuple[Any, ...]], ...] = (
        lambda image: (image.name, image.content),
        lambda image: (image.label, image.content),
        lambda image: (image.content,),
        lambda image: (image.name,),
    )
    for rule in rules:
        by_key: dict[tuple[Any, ...], list[RecordedImage]] = defaultdict(list)
        for image in reversed(fresh):
            by_key[rule(image)].append(image)
        rest, taken = [], set()
        for image in left:
            same = by_key.get(rule(image))
            # Files that cannot be read have no content to be known by.
            if same and (image.digest != UNREADABLE or same[-1].name == image.name):
                pairs.append((image, same[-1]))
                taken.add(same.pop().name)
            else:
                rest.append(image)
        left, fresh = rest, [image for image in fresh if image.name not in taken]
    return pairs, left, fresh


def restore_splits(
    parts: Mapping[str, ImageDataset],
    classes: Sequence[str],
    record: ImageRecord,
    task: TaskName = "classify",
) -> tuple[Splits, Changes]:
    """Choose the images of a record from the data at hand, in the record's order.

    Images that were added, changed or moved to another class are in no split; those that moved within their
    class are in the split that they were in.

    Args:
        parts: The images, as the data themselves divide them.
        classes: Names of the data's classes.
        record: The images of the run.
        task: What is learned of the images.

    Returns:
        The splits, and how the data differ from the record.

    Raises:
        ValueError: The classes are others, a split has no images left, or the images of one split are in
            several parts of the data now.
    """
    if tuple(classes) != record.classes:
        differing = {
            "lacking": [name for name in record.classes if name not in classes],
            "new": [name for name in classes if name not in record.classes],
        }
        said = ", ".join(f"{kind} are ({few(names)})" for kind, names in differing.items() if names)
        raise ValueError(
            f"the data must have the record's classes, {few(record.classes)}; "
            f"{said or 'the order is another'}"
        )
    found = list(_fingerprints(parts, classes, record.extent))
    pairs, removed, added = _pair(record.images, found)
    changes = _changes(pairs, removed, added, by_split=False)
    where = {
        image.name: (part, index)
        for part in parts
        for index, image in enumerate(image for image in found if image.split == part)
    }
    same = {
        old.name: where[new.name]
        for old, new in pairs
        if (old.label, old.content) == (new.label, new.content)
    }
    chosen: dict[str, ImageDataset] = {}
    for split in SPLITS:
        wanted = [image for image in record.images if image.split == split]
        places = [same[image.name] for image in wanted if image.name in same]
        if not wanted:
            continue
        if len(origins := {part for part, _ in places}) > 1:
            raise ValueError(
                f"images of the {split} split are in {' and '.join(sorted(origins))} of the data now"
            )
        if not places:
            raise ValueError(
                f"none of the {len(wanted)} images of the {split} split is there any more: {changes}"
            )
        chosen[split] = parts[places[0][0]].subset(torch.tensor([index for _, index in places]))
    return Splits(tuple(classes), chosen["train"], chosen["val"], chosen.get("test"), task=task), changes


def find_recorded(record: ImageRecord, images: Iterable[ImageDataset]) -> dict[str, tuple[str, ...]]:
    """Find images whose content is that of images of a record.

    Args:
        record: The images of a run.
        images: Others, each in one of several datasets.

    Returns:
        For each split of the record the names, in `images`, of those that are in it; without splits of none.
    """
    split_of: dict[Content, str] = {}
    # of an image in several splits the first one counts, which is training
    for image in sorted(record.images, key=lambda image: SPLITS.index(image.split), reverse=True):
        if image.digest != UNREADABLE:
            split_of[image.content] = image.split
    found: dict[str, list[str]] = defaultdict(list)
    for part in images:
        for image in _fingerprints({"": part}, (), record.extent):
            if image.content in split_of:
                found[split_of[image.content]].append(image.name)
    return {split: tuple(found[split]) for split in SPLITS if split in found}


def find_equal_pixels(record: ImageRecord, splits: Splits) -> dict[Content, Content] | None:
    """Find images of different content that are decoded to the same pixels, as of one picture in PNG and BMP.

    Images whose height and width another one has, too, are decoded. Videos, volumes and arrays are not.

    Args:
        record: What `record_images` returned of the splits.
        splits: The images.

    Returns:
        For each such content the one that stands for all that are equal; None where decoding would take too
        long: of images of one size more than some 1.3e8 pixels, a file counting as 16,384 at least.
    """
    parts = [images for split in SPLITS if (images := getattr(splits, split)) is not None]
    if not all(images.listed and images.axes == 2 for images in parts) or isinstance(
        splits.train, ArrayImages
    ):
        return {}
    places = [(images, index) for images in parts for index in range(len(images))]
    known = {
        image.content: place
        for image, place in zip(record.images, places, strict=True)
        if image.digest != UNREADABLE
    }
    if len(known) * PIXELS_PER_FILE > DECODED:
        return None
    by_size: dict[tuple[int, int], list[Content]] = defaultdict(list)
    for content, (images, index) in known.items():
        with images.stored(index) as file:
            if (size := read_size(file)) is not None:
                by_size[size].append(content)
    by_size = {size: contents for size, contents in by_size.items() if len(contents) > 1}
    if sum(len(several) * max(prod(size), PIXELS_PER_FILE) for size, several in by_size.items()) > DECODED:
        return None
    first: dict[tuple[Any, ...], Content] = {}
    equal: dict[Content, Content] = {}
    for content in chain.from_iterable(by_size.values()):
        images, index = known[content]
        with suppress(BadImageError):
            values = images.values(index, images.channels).contiguous()
            digest = hashlib.blake2b(values.numpy(), digest_size=16).digest()
            equal[content] = first.setdefault((values.dtype, values.shape, digest), content)
    return {content: one for content, one in equal.items() if content != one}


class Duplicates(NamedTuple):
    """Images of one content that are in several splits, or in several classes.

    Args:
        across_splits: Groups of names, one of each split first.
        across_classes: Groups of names, one of each class first.
    """

    across_splits: tuple[tuple[str, ...], ...]
    across_classes: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """Describe them in one line; empty if there are none."""
        kinds = {"splits": self.across_splits, "classes": self.across_classes}
        return "; ".join(
            f"{len(groups)} images are in several {kind} ({' = '.join(groups[0][:MOST])}"
            + f" and {len(groups[0]) - MOST} more" * (len(groups[0]) > MOST)
            + (", …)" if len(groups) > 1 else ")")
            for kind, groups in kinds.items()
            if groups
        )


def find_duplicates(record: ImageRecord, equal: Mapping[Content, Content] | None = None) -> Duplicates:
    """Find images of one content in several splits, or in several classes.

    Args:
        record: The images.
        equal: Contents that count as others, from `find_equal_pixels`; by default bytes are compared.
    """
    groups: dict[Content, list[RecordedImage]] = defaultdict(list)
    for image in record.images:
        if image.digest != UNREADABLE:
            groups[(equal or {}).get(image.content, image.content)].append(image)
    several = [group for group in groups.values() if len(group) > 1]

    def across(part: Literal["split", "label"]) -> Iterator[tuple[str, ...]]:
        for group in several:
            firsts = {getattr(image, part): id(image) for image in reversed(group)}
            if len(firsts) > 1:
                ordered = sorted(group, key=lambda image: id(image) not in firsts.values())
                yield tuple(f"{image.split}: {image.name}" for image in ordered)

    return Duplicates(tuple(across("split")), tuple(across("label")))


def digest(content: bytes | BinaryIO, extent: Extent) -> tuple[int, str]:
    """Return the size of a content and the digest of it or of parts of it.

    Args:
        content: Bytes, or a file open for reading.
        extent: Whether the whole content counts, or its first and last 32 KiB, with or without eight parts of
            4 KiB between them.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    state = hashlib.blake2b(digest_size=16)
    if extent == "whole" or size <= 2 * END:
        while part := file.read(2**20):
            state.update(part)
    else:
        state.update(file.read(END))
        for number in range(PARTS if extent == "parts" else 0):
            file.seek(END + (size - 2 * END) * (number + 1) // (PARTS + 1))
            state.update(file.read(PART))
        file.seek(size - END)
        state.update(file.read(END))
    return size, state.hexdigest()


def _fingerprints(
    parts: Mapping[str, ImageDataset], classes: Sequence[str], extent: Extent
) -> Iterable[RecordedImage]:
    for split, images in parts.items():
        for index, label in enumerate(images.labels.tolist()):
            if isinstance(label, list):
                name = " ".join(f"{value:.9g}" for value in label)
            else:
                name = classes[label] if 0 <= label < len(classes) else str(label)
            try:
                with images.stored(index) as content:
                    yield RecordedImage(split, name, *digest(content, extent), images.key(index))
            except (BadImageError, FileNotFoundError):
                # training stops at it or skips it, as it is told; the record only lists it
                yield RecordedImage(split, name, 0, UNREADABLE, images.key(index))


def few(names: Sequence[str], most: int = 3) -> str:
    """Return how many names there are, and the first of them."""
    more = ", …" if len(names) > most else ""
    return f"{len(names)}: {', '.join(names[:most])}{more}"
