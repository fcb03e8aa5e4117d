"""WebDataset shards: tar files whose members of one base name are one sample.

The shards are read where they lie: their headers are listed once, images are read by offset, and nothing is
unpacked, so that a member's path is never a place to write to. Knowing every sample beforehand makes the
order a function of seed and epoch, whatever the number of workers or ranks.
"""

import glob
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vit_pytorch.training.data.datasets import ImageDataset
from vit_pytorch.training.data.decode import EXTENSIONS, decode_image

WINDOW = 8192
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

    def read(self, index: int, channels: int) -> UInt8[Tensor, "c h w"]:
        """Return one image, values 0 to 255, in grey or RGB."""
        return decode_image(self._member(index), channels=channels, name=self.name(index))

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


def read_shards(pattern: str, classes: tuple[str, ...] | None = None) -> tuple[ShardImages, tuple[str, ...]]:
    """List the samples of the shards that a pattern names.

    A sample has one image member and one ``.cls`` member, which holds the index of the class or its name.

    Args:
        pattern: Local tar files, with braces (``train-{000..003}.tar``) or wildcards.
        classes: The classes, if they are known. Otherwise they come from ``classes.txt`` (one name a line) or
            ``classes.json`` (a list) beside the first shard, or else are the numbers up to the largest label.

    Returns:
        The images in the order of the shards, and the classes.

    Raises:
        ImportError: The webdataset library is not installed.
        ValueError: A shard is missing, remote, compressed or broken, or a sample lacks its image or its
            class.
    """
    shards = expand_shards(pattern)
    classes = classes if classes is not None else _listed_classes(shards[0].parent)
    rows: list[tuple[int, int, int]] = []
    keys: list[str] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        for key, offset, size, text in _samples(shard):
            rows.append((number, offset, size))
            keys.append(key)
            labels.append(_label(text, classes, f"{shard}:{key}"))
    if not rows:
        raise ValueError(f"the shards of {pattern} hold no images")
    if classes is None:
        classes = tuple(str(i) for i in range(max(labels) + 1))
    return ShardImages(shards, torch.tensor(rows), keys, torch.tensor(labels)), classes


def expand_shards(pattern: str) -> list[Path]:
    """Return the shards that a pattern of braces and wildcards names, in order.

    Raises:
        ImportError: The webdataset library is not installed.
        ValueError: The pattern names a remote shard, or one that does not exist.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ImportError(
            "wds: data needs the webdataset library: pip install 'vit-pytorch[data]'"
        ) from error
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


def _samples(shard: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield base name, offset and size of the image, and text of the class, for each sample of a shard."""
    with shard.open("rb") as file:
        file.seek(max(0, shard.stat().st_size - END_MARK))
        if file.read() != bytes(END_MARK):
            # tarfile does not miss it, and a shard cut between two members would only seem smaller.
            raise ValueError(
                f"{shard} is not a whole, uncompressed tar file: it must end with {END_MARK} zero bytes"
            )
    images: dict[str, tuple[int, int]] = {}
    texts: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                base, _, extension = name.partition(".")
                if not member.isfile() or not base:
                    continue
                key = os.path.join(folder, base)
                if extension == "cls":
                    content = archive.extractfile(member)
                    assert content is not None, "a regular member has content"
                    texts[key] = content.read().decode("utf-8", "replace").strip()
                elif f".{extension.lower()}" in EXTENSIONS:
                    if key in images:
                        raise ValueError(f"{shard}:{key} has two images; a sample must have one")
                    images[key] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a whole, uncompressed tar file: {error}") from error
    for key in images.keys() | texts.keys():
        if key not in images or key not in texts:
            raise ValueError(f"{shard}:{key} has no {'image' if key not in images else '.cls'} member")
    for key, (offset, size) in images.items():
        yield key, offset, size, texts[key]


def _label(text: str, classes: tuple[str, ...] | None, name: str) -> int:
    if classes is not None and text in classes:
        return classes.index(text)
    try:
        return int(text)
    except ValueError:
        known = (
            "the index of a class"
            if classes is None
            else f"the index or name of one of {len(classes)} classes"
        )
        raise ValueError(f"the .cls member of {name} must be {known}, got {text!r}") from None


def _listed_classes(folder: Path) -> tuple[str, ...] | None:
    text, listed = folder / "classes.txt", folder / "classes.json"
    if text.is_file():
        return tuple(line.strip() for line in text.read_text().splitlines() if line.strip())
    if listed.is_file():
        names = json.loads(listed.read_text())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{listed} must be a list of names, got {type(names).__name__}")
        return tuple(names)
    return None
