"""WebDataset shards as a stream: local, over HTTP or from a command, in memory that does not grow with them.

Nothing is listed beforehand. Each worker draws shards at random, again and again, by WebDataset's own
resampling, reads a shard from its start to its end, and shuffles samples in a buffer. So an epoch is a number
of samples, not each image once, and a training that is resumed goes on at its number of samples, with others.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from vit_pytorch.data.datasets import ImageDataset, Splits
from vit_pytorch.data.remote import REMOTE, ShardNames
from vit_pytorch.data.shards import read_names, read_shards
from vit_pytorch.extras import install_command
from vit_pytorch.layers.arguments import INTEGERS, find_range


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """What a stream does not say by itself.

    Args:
        epoch_samples: Images of an epoch, over all processes.
        classes: A file with the name of a class in each line, or the number of classes.
        val: Pattern of local shards with the validation images, each of which is seen once.
    """

    epoch_samples: int | None = None
    classes: str | int | None = None
    val: str | None = None

    def __post_init__(self) -> None:
        if self.epoch_samples is not None and self.epoch_samples < 1:
            raise ValueError(f"epoch_samples must be at least 1, got {self.epoch_samples}")

    @property
    def given(self) -> list[str]:
        """Names of the settings that are given."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


class StreamImages(ImageDataset):
    """Images that come as a stream: none has an index, and none is known beforehand.

    Args:
        names: The shards.
        epoch_samples: What counts as all of them.
    """

    listed: ClassVar[bool] = False

    def __init__(self, names: ShardNames, epoch_samples: int) -> None:
        super().__init__(torch.empty(0, dtype=torch.int64), channels=3)
        self.names = names
        self.epoch_samples = epoch_samples

    def __len__(self) -> int:
        return self.epoch_samples

    def __str__(self) -> str:
        return (
            f"a stream: an epoch is {self.epoch_samples} samples drawn from {len(self.names)} shards, not "
            "each image once; a run that is resumed goes on at its number of samples, with other samples"
        )

    def name(self, index: int) -> str:
        """Return what the stream is read from."""
        return self.names.pattern

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "c h w"]:
        """Refuse to read a single image.

        Raises:
            ValueError: Always.
        """
        raise ValueError(self._refusal)

    def values(self, index: int, channels: int) -> Tensor:
        """Refuse to read a single image; see `read`."""
        raise ValueError(self._refusal)

    def subset(self, indices: Tensor) -> ImageDataset:
        """Refuse to choose images; see `read`."""
        raise ValueError(self._refusal)

    @property
    def _refusal(self) -> str:
        return (
            f"images of stream:{self.names.pattern} come in the order of their shards, none is read by "
            "itself: local shards are read so as wds:PATTERN"
        )


def open_stream(pattern: str, config: StreamConfig, *, labelled: bool = True) -> Splits:
    """Open shards as a stream of training images, and local shards for validation.

    Args:
        pattern: The shards: local paths, addresses (`http://`, `https://`) or commands (`pipe:cat X.tar`),
            with braces.
        config: What they do not say.
        labelled: Whether images must have labels. Without, `classes` is empty, and labels are not read.

    Raises:
        ImportError: The webdataset library is not installed.
        ValueError: A setting is missing, the validation images are not what `read_shards` takes, there is no
            such local shard, or the source is of another kind.
    """
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise ImportError(f"stream: data needs the webdataset library: {install_command('data')}") from error
    if config.epoch_samples is None:
        raise ValueError(
            "a stream has no length: say how many images make an epoch (--epoch_samples N, for example the "
            "number of all images)"
        )
    if labelled and config.classes is None:
        raise ValueError(
            "a stream does not list its classes: name a file with one in each line, or their number "
            "(--data.classes FILE, --data.classes 1000)"
        )
    if config.val is None:
        raise ValueError(
            "a stream needs validation images, which are local shards and seen once each (--data.val PATTERN)"
        )
    if "://" in pattern and not pattern.startswith((*REMOTE, "pipe:")):
        raise ValueError(
            "a stream is of local paths, http://, https:// or pipe:COMMAND, such as pipe:gsutil cat "
            f"gs://BUCKET/{{000..999}}.tar; got {pattern}"
        )
    names = ShardNames(pattern)
    if "://" not in pattern and not pattern.startswith("pipe:"):
        missing = [name for name in (names[0], names[-1]) if not os.path.isfile(name)]
        if missing:
            raise ValueError(f"no such shard: {missing[0]}")
    classes = read_classes(config.classes) if labelled and config.classes is not None else ()
    val, _ = read_shards(config.val, classes, labelled=labelled)
    return Splits(
        classes=classes,
        train=StreamImages(names, config.epoch_samples),
        val=val,
        unlabelled="" if labelled else "the training images are a stream, of which none is kept",
    )


def read_classes(classes: str | int) -> tuple[str, ...]:
    """Return the names of classes: the lines of a file, or numbers from 0 up to so many.

    Raises:
        ValueError: There are less than two, more than a model can have, or two of one name.
        OSError: The file cannot be read.
    """
    text = str(classes)
    if re.fullmatch(r"[0-9]+", text):
        known = find_range("num_classes", INTEGERS)
        if int(text) not in known:
            raise ValueError(f"the number of classes must be in {known}, got {text}")
        names = tuple(map(str, range(int(text))))
    else:
        names = read_names(Path(text).expanduser())
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"the classes of a stream must be at least 2, each of its own name; got {len(names)}, "
            f"{len(set(names))} of them different, from {classes}"
        )
    return names
