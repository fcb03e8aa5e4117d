"""WebDataset shards: tar files whose members of one base name are one sample.

The shards are read where they lie: their headers are listed once, images are read by offset, and nothing is
unpacked, so that a member's path is never a place to write to. Knowing every sample beforehand makes the
order a function of seed and epoch, whatever the number of workers or ranks.
"""

import glob
import io
import json
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from vit_pytorch.data.datasets import ImageDataset
from vit_pytorch.data.decode import EXTENSIONS, decode_image, read_values
from vit_pytorch.extras import install_command
from vit_pytorch.weights import unique_pairs

WINDOW = 8192
# without a list of classes, labels may go so far even where samples are fewer
FEW_CLASSES = 1000
# labels are short texts; a longer member is read no further
MAX_LABEL = 65536
END_MARK = 1024


class ShardImages(ImageDataset):
    """Images inside tar files.

    Args:
        shards: The tar files.
        table: For each image its shard, offset and size in bytes.
        keys: For each image its base name in the shard.
        labels: The class of each image.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        table: Int64[Tensor, "n 3"],
        keys: Sequence[str],
        labels: Int64[Tensor, "n"],
    ) -> None:
        super().__init__(labels, channels=3)
        self.shards = list(shards)
        self.table = table
        self.keys = list(keys)

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "c h w"]:
        """Return one image, values 0 to 255, with the number of channels that is asked for."""
        return decode_image(self._member(index), channels=channels, name=self.name(index), window=window)

    def values(self, index: int, channels: int) -> Shaped[Tensor, "c h w"]:
        """Return one image with the values that its file has."""
        return read_values(self._member(index), channels=channels, name=self.name(index))

    def _member(self, index: int) -> bytes:
        shard, offset, size = self.table[index].tolist()
        with self.shards[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(self, index: int) -> str:
        """Return the path, or place, of one image."""
        return f"{self.shards[int(self.table[index, 0])]}:{self.keys[index]}"

    def stored(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open the member that holds one image."""
        return io.BytesIO(self._member(index))

    def stored_bytes(self) -> int:
        """Return the size of all members that hold images."""
        return int(self.table[:, 2].sum())

    def subset(self, indices: Int64[Tensor, "m"]) -> "ShardImages":
        """Return the images at these indices, in this order."""
        keys = [self.keys[i] for i in indices.tolist()]
        return ShardImages(self.shards, self.table[indices], keys, self.labels[indices])

    def shuffled(self, generator: torch.Generator) -> Int64[Tensor, "n"]:
        """Shuffle the shards, then images within a moving window: reading stays nearly sequential."""
        rank = torch.randperm(len(self.shards), generator=generator)[self.table[:, 0]]
        in_shards = torch.argsort(rank, stable=True)
        place = torch.arange(len(self)) + WINDOW * torch.rand(
            len(self), generator=generator, dtype=torch.float64
        )
        return in_shards[torch.argsort(place, stable=True)]


def read_shards(
    pattern: str, classes: tuple[str, ...] | None = None, *, labelled: bool = True
) -> tuple[ShardImages, tuple[str, ...]]:
    """List the samples of the shards that a pattern names.

    A sample has one image member and one ``.cls`` member, which holds the index of the class or its name; or
    a ``.json`` member with an object that has one of them under ``cls`` or ``label``; both must not name
    different classes. A member's extension begins at the first dot of its name, as WebDataset has it; where
    no sample comes of that, at the last one.

    Args:
        pattern: Local tar files, with braces (``train-{000..003}.tar``) or wildcards.
        classes: The classes, if they are known. Otherwise they come from ``classes.txt`` (one name a line) or
            ``classes.json`` (a list) beside the first shard, or else are the numbers up to the largest label,
            of which there may be as many as samples.
        labelled: Whether samples must have a class; else theirs are not read, and there are no classes.

    Returns:
        The images in the order of the shards, and the classes.

    Raises:
        ImportError: The webdataset library is not installed.
        ValueError: A shard is missing, remote, compressed or broken, a sample lacks its image or its class, a
            label is no class, a sample is of two classes, or members have names that lead out of the archive.
    """
    shards = expand_shards(pattern)
    if not labelled:
        classes = ()
    elif classes is None:
        classes = _listed_classes(shards[0].parent)
    indices = None if classes is None else {name: index for index, name in enumerate(classes)}
    rows: list[tuple[int, int, int]] = []
    keys: list[str] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        for key, offset, size, text, beside in _samples(shard, labelled=labelled):
            rows.append((number, offset, size))
            keys.append(key)
            labels.append(read_label(text, indices, f"{shard}:{key}") if labelled else -1)
            if beside:
                check_json_label(labels[-1], beside, indices, f"{shard}:{key}")
    if not rows:
        raise ValueError(f"the shards of {pattern} hold no images")
    if classes is None:
        # A label far beyond the number of samples is damage, and its classes would fill the memory.
        worst = max(range(len(labels)), key=lambda i: labels[i])
        if labels[worst] >= max(len(labels), FEW_CLASSES):
            raise ValueError(
                f"{shards[rows[worst][0]]}:{keys[worst]} has label {labels[worst]}, in shards of "
                f"{len(labels)} samples: list the classes in classes.txt beside the shards"
            )
        classes = tuple(str(i) for i in range(labels[worst] + 1))
    return ShardImages(shards, torch.tensor(rows), keys, torch.tensor(labels)), classes


def first_images(pattern: str, count: int) -> ShardImages:
    """Return a few images, whose classes are not read, from the first shard that a pattern names.

    Raises:
        ImportError: The webdataset library is not installed.
        ValueError: The shard is missing, remote, compressed or broken, or a sample lacks its image.
    """
    shard = expand_shards(pattern)[0]
    samples = list(islice(_samples(shard, labelled=False), count))
    table = torch.tensor([(0, offset, size) for _, offset, size, *_ in samples], dtype=torch.int64)
    keys = [key for key, *_ in samples]
    return ShardImages([shard], table.view(-1, 3), keys, torch.full((len(samples),), -1))


def expand_shards(pattern: str) -> list[Path]:
    """Return the shards that a pattern of braces and wildcards names, in order.

    Raises:
        ImportError: The webdataset library is not installed.
        ValueError: The pattern names a remote shard, or one that does not exist.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ImportError(f"wds: data needs the webdataset library: {install_command('data')}") from error
    shards: list[Path] = []
    for name in expand_urls(pattern):
        if "://" in name or name.startswith("pipe:"):
            raise ValueError(f"shards must be local files, since they are read by offset; got {name}")
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        missing = [match for match in matches if not os.path.isfile(match)]
        if missing or not matches:
            raise ValueError(f"no such shard: {missing[0] if missing else name}")
        shards += map(Path, matches)
    return shards


def _samples(shard: Path, *, labelled: bool) -> Iterator[tuple[str, int, int, str, str]]:
    """Yield base name, offset and size of the image, text of the class, and that of a `.json` member beside a
    `.cls` member, for each sample of a shard."""
    with shard.open("rb") as file:
        file.seek(max(0, shard.stat().st_size - END_MARK))
        if file.read() != bytes(END_MARK):
            # tarfile does not miss it, and a shard cut between two members would only seem smaller.
            raise ValueError(
                f"{shard} is not a whole, uncompressed tar file: it must end with {END_MARK} zero bytes"
            )
    members, left_out = _members(shard)
    if left_out:
        warnings.warn(
            f"{shard}: left out members that are no plain files: {', '.join(left_out[:3])}"
            + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""),
            stacklevel=2,
        )
    first, last = (_group(shard, members, split, labelled) for split in (str.partition, str.rpartition))
    # Base names with dots, such as `photo.1.jpg`, are not WebDataset's, but common.
    samples = first if not _faults(first, labelled) or _faults(last, labelled) else last
    for key, parts in samples.items():
        if fault := _fault(parts, labelled):
            raise ValueError(f"{shard}:{key} {fault}")
    for key, parts in samples.items():
        offset, size, _ = parts["image"]
        text, beside = (parts.get(role, (0, 0, ""))[2] for role in ("label", "json"))
        yield key, offset, size, text, beside


Members = list[tuple[str, int, int, str]]
Sample = dict[str, tuple[int, int, str]]


def _members(shard: Path) -> tuple[Members, list[str]]:
    """Return name, offset, size and text of the members that may belong to samples; and links and devices."""
    members: Members = []
    left_out: list[str] = []
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isdir() or not os.path.basename(member.name).partition(".")[0]:
                    continue
                if not member.isfile():
                    left_out.append(member.name)
                    continue
                if member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise ValueError(
                        f"{shard}:{member.name} leads out of the archive: names of members must be relative, "
                        "without '..'"
                    )
                text = ""
                if member.name.lower().endswith((".cls", ".json")):
                    content = archive.extractfile(member)
                    assert content is not None, "a regular member has content"
                    text = content.read(MAX_LABEL).decode("utf-8", "replace").strip()
                members.append((member.name, member.offset_data, member.size, text))
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a whole, uncompressed tar file: {error}") from error
    return members, left_out


def _group(
    shard: Path, members: Members, split: Callable[[str, str], tuple[str, str, str]], labelled: bool
) -> dict[str, Sample]:
    """Put the image of each sample, and its label where it must have one, together by the base name."""
    roles = {"cls": "label"} | ({"json": "json"} if labelled else {})
    samples: dict[str, Sample] = {}
    for path, offset, size, text in members:
        folder, name = os.path.split(path)
        base, _, extension = split(name, ".")
        extension = extension.lower()
        role = "image" if f".{extension}" in EXTENSIONS else roles.get(extension)
        if role is None:
            continue
        sample = samples.setdefault(os.path.join(folder, base), {})
        if role in sample and (labelled or role == "image"):
            sample["two"] = 0, 0, role
        sample[role] = offset, size, text
    for key, sample in samples.items():
        if "label" not in sample and "json" in sample:
            label = read_json_label(sample["json"][2], f"{shard}:{key}")
            if label is not None:
                sample["label"] = 0, 0, label
            del sample["json"]
    return {key: sample for key, sample in samples.items() if sample.keys() & {"image", "label"}}


def _fault(sample: Sample, labelled: bool) -> str:
    """Return what is wrong with a sample; nothing if it is whole."""
    if twice := sample.get("two", (0, 0, ""))[2]:
        return f"has two {twice}s; a sample must have one"
    if "image" not in sample:
        return "has no image member"
    return "" if "label" in sample or not labelled else "has no .cls member, nor a .json member with a label"


def _faults(samples: dict[str, Sample], labelled: bool) -> bool:
    return any(_fault(sample, labelled) for sample in samples.values()) or not samples


def read_json_label(text: str, name: str) -> str | None:
    """Return the label in a JSON object; None if it has none.

    Raises:
        ValueError: It is not JSON, names a key twice, its labels are several, or neither index nor name.
    """
    try:
        content = json.loads(text, object_pairs_hook=unique_pairs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the .json member of {name} is not JSON: {error}") from error
    found = [content[key] for key in ("cls", "label") if key in content] if isinstance(content, dict) else []
    if len({str(label) for label in found}) > 1:
        raise ValueError(f"the .json member of {name} has the labels {found[0]!r} and {found[1]!r}")
    if not found:
        return None
    if isinstance(found[0], bool) or not isinstance(found[0], (int, str)):
        raise ValueError(
            f"the label in the .json member of {name} must be an index or a name, got {found[0]!r}"
        )
    return str(found[0])


def read_label(text: str, indices: Mapping[str, int] | None, name: str) -> int:
    """Return the label that the text of a member says: an index, or the name of a class.

    Args:
        text: The text.
        indices: The index of each class by its name; None where classes have no names.
        name: What messages call the sample.

    Raises:
        ValueError: It is neither, or one class by its index and another by its name.
    """
    known = (
        "the index of a class" if indices is None else f"the index or name of one of {len(indices)} classes"
    )
    # `int` would take "1_0", "+1" and the digits of other scripts, too
    number = int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
    if indices is not None and text in indices:
        if number is not None and indices[text] != number < len(indices):
            raise ValueError(
                f"the label of {name} may be the class named {text!r} or that of index {number}: let no "
                "class have the index of another one for its name"
            )
        return indices[text]
    if number is None:
        raise ValueError(f"the label of {name} must be {known}, got {text[:80]!r}")
    if number < 0:
        raise ValueError(f"the label of {name} must be {known}, from 0 on, got {number}")
    return number


def check_json_label(label: int, text: str, indices: Mapping[str, int] | None, name: str) -> None:
    """Check that the `.json` member of a sample names no other class than its `.cls` member.

    Args:
        label: The class by the `.cls` member.
        text: The text of the `.json` member. What is no class there, such as a caption, says nothing.
        indices: As for `read_label`.
        name: What messages call the sample.

    Raises:
        ValueError: It names another class.
    """
    try:
        said = read_json_label(text, name)
        other = label if said is None else read_label(said, indices, name)
    except ValueError:
        return
    if other != label and (indices is None or other < len(indices)):
        raise ValueError(
            f"{name} is of class {label} by its .cls member, and of class {other} by its .json member: "
            "leave the label out of one of them"
        )


def _listed_classes(folder: Path) -> tuple[str, ...] | None:
    text, listed = folder / "classes.txt", folder / "classes.json"
    if text.is_file():
        return read_names(text)
    if not listed.is_file():
        return None
    try:
        names = json.loads(listed.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{listed} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{listed} must be a list of names, got {type(names).__name__}")
    return tuple(names)


def read_names(file: Path) -> tuple[str, ...]:
    """Return the names of classes that the lines of a file have, in order.

    Raises:
        ValueError: It is no text, or a line between others is empty: the class of an index would be another
            one with it than without.
        OSError: It cannot be read.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if "" in names:
        raise ValueError(
            f"{file} must have the name of a class in each line, line {names.index('') + 1} is empty"
        )
    return tuple(names)
