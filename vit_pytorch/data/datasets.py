"""Labelled images: in memory, in files, and as splits that are checked once; base of videos and volumes."""

import io
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from vit_pytorch.data.arrays import scale
from vit_pytorch.data.decode import EXTENSIONS, decode_image, is_image, open_regular, read_values
from vit_pytorch.data.seeding import generator_for
from vit_pytorch.preprocessing import Preprocessing

# what is learned of an image: its class, which labels it has, or values
TaskName = Literal["classify", "multilabel", "regression"]
# what programs write for a cell without a value
MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null")
# small letters of the Cyrillic and the Greek alphabet, and those of the Latin one that they look like
LOOK_ALIKE = str.maketrans("авекмнорстухіјѕһԁοαρνικτχ", "abekmhopctyxijshdoapviktx")


class ImageDataset(Dataset[tuple[Tensor, int | Tensor]]):
    """Labelled images in a fixed order.

    Subclasses say how one image is read. An item is the pair (image, label): uint8, ``c h w`` in the data's
    own number of channels, and an integer, or a row of targets.

    Args:
        labels: The class of each image, -1 where it is not known; or a row of targets (n, k) for each, as
            `Splits` has them.
        channels: Channels that the images have by themselves.
    """

    # what one of them is called
    kind: ClassVar[str] = "image"
    # those of one of them, beside its channels: 2, or 3 for videos and volumes
    axes: ClassVar[int] = 2
    # whether training sees another part of it each time, such as a clip of a video
    varies: ClassVar[bool] = False
    # whether all of them are known beforehand, so that any can be read by its index
    listed: ClassVar[bool] = True
    # what all names begin with
    root: str = ""

    def __init__(self, labels: Shaped[Tensor, "n *k"], channels: int) -> None:
        self.labels = labels
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        image, label = self.read(index, self.channels), self.labels[index]
        return image, label if label.ndim else int(label)

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "c h w"]:
        """Return one image, values 0 to 255, with the number of channels that is asked for.

        Args:
            index: Which image.
            channels: How many channels.
            window: Values of the file that become 0 and 255; the whole range if left out.
        """
        raise NotImplementedError

    def values(self, index: int, channels: int) -> Shaped[Tensor, "c h w"]:
        """Return one image with the values that its file has, as `read_values` does."""
        raise NotImplementedError

    def look(
        self, index: int, prep: Preprocessing, generator: torch.Generator | None = None
    ) -> Shaped[Tensor, "*t c h w"]:
        """Return what is prepared for the model: the image, or the clip or the slices that it takes.

        Args:
            index: Which image.
            prep: The model's input.
            generator: Draws the part that training sees, where it varies; None for that of evaluation.
        """
        if prep.window is not None:
            return self.read(index, prep.channels, prep.window)
        return self.read(index, prep.channels)

    def name(self, index: int) -> str:
        """Return what messages call one image: its path if it has one."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        """Return the name of one image without what all names begin with, such as the data's folder."""
        return self.name(index).removeprefix(self.root).replace(os.sep, "/")

    def stored(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open the bytes in which one image is stored."""
        raise NotImplementedError

    def stored_bytes(self) -> int:
        """Return how many bytes all images are stored in, about."""
        raise NotImplementedError

    def subset(self, indices: Int64[Tensor, "m"]) -> "ImageDataset":
        """Return the images at these indices, in this order."""
        raise NotImplementedError

    def shuffled(self, generator: torch.Generator) -> Int64[Tensor, "n"]:
        """Return the indices in random order, drawn from the generator alone."""
        return torch.randperm(len(self), generator=generator)


class ArrayImages(ImageDataset):
    """Images of one size, held in memory.

    Args:
        images: Values 0 to 255.
        labels: The class of each image.
        origin: What messages call the collection.
        positions: The place of each image in its collection, where this is a part of it.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, "n"],
        *,
        origin: str,
        positions: Int64[Tensor, "n"] | None = None,
    ) -> None:
        super().__init__(labels, images.shape[1])
        self.images = images
        self.origin = origin
        self.positions = torch.arange(len(labels)) if positions is None else positions

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "c h w"]:
        """Return one image, values 0 to 255, in grey or RGB."""
        return convert_channels(scale(self.images[index], window), channels)

    def values(self, index: int, channels: int) -> Shaped[Tensor, "c h w"]:
        """Return one image as it is."""
        return self.images[index]

    def name(self, index: int) -> str:
        """Return the path, or place, of one image."""
        return f"{self.origin}[{int(self.positions[index])}]"

    def stored(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open the pixels of one image."""
        return io.BytesIO(self.images[index].numpy().tobytes())

    def stored_bytes(self) -> int:
        """Return the size of all pixels."""
        return self.images.nbytes

    def subset(self, indices: Int64[Tensor, "m"]) -> "ArrayImages":
        """Return the images at these indices, in this order."""
        return ArrayImages(
            self.images[indices], self.labels[indices], origin=self.origin, positions=self.positions[indices]
        )


class FileImages(ImageDataset):
    """Images in files, decoded when they are read.

    Args:
        paths: One file an image.
        labels: The class of each file, or its targets; unknown if left out.
    """

    # how names of such files end, in small letters
    extensions: ClassVar[frozenset[str]] = EXTENSIONS
    own_channels: ClassVar[int] = 3
    # decides by content about a file whose name has no extension
    is_known: ClassVar[Callable[[Path], bool] | None] = is_image

    def __init__(self, paths: Sequence[Path], labels: Shaped[Tensor, "n *k"] | None = None) -> None:
        unknown = torch.full((len(paths),), -1)
        super().__init__(unknown if labels is None else labels, channels=self.own_channels)
        self.paths = list(paths)

    def read(
        self, index: int, channels: int, window: tuple[float, float] | None = None
    ) -> UInt8[Tensor, "c h w"]:
        """Return one image, values 0 to 255, with the number of channels that is asked for."""
        return decode_image(self.paths[index], channels=channels, window=window)

    def values(self, index: int, channels: int) -> Shaped[Tensor, "c h w"]:
        """Return one image with the values that its file has."""
        return read_values(self.paths[index], channels=channels)

    def name(self, index: int) -> str:
        """Return the path, or place, of one image."""
        return str(self.paths[index])

    def stored(self, index: int) -> AbstractContextManager[BinaryIO]:
        """Open the file of one image."""
        return open_regular(self.paths[index], self.kind)

    def stored_bytes(self) -> int:
        """Return the size of all files."""
        return sum(path.stat().st_size for path in self.paths if path.exists())

    def subset(self, indices: Int64[Tensor, "m"]) -> "FileImages":
        """Return the images at these indices, in this order."""
        return type(self)([self.paths[i] for i in indices.tolist()], self.labels[indices])


@dataclass(frozen=True)
class Splits:
    """Training, validation and perhaps test images of one task, with the names of its classes.

    Args:
        classes: Names; a label is an index into them. Empty where images have no labels. Of other tasks the
            names of labels or values, one for each column of targets.
        train: At least one image; of at least two classes, where there are classes.
        val: At least one image.
        test: Held-out images, if the data has any.
        left_out: Paths below the data's folder that are none of its images, by the reason.
        unlabelled: Why images have no labels; empty where they have.
        task: `classify` for a class each; `multilabel` for targets (n, k) of 1 where an image has a label and
            0 where not; `regression` for targets (n, k) of any value.
        measured: Of data that nothing is learned from, the splits that they have, of which the others are
            copies: `test` where they are not split. They may be of one class.

    Raises:
        ValueError: A split is empty, a label is out of range, the training images are all of one class or
            value, or the name of a class is not UTF-8. The message names the split, and the image or class.
    """

    classes: tuple[str, ...]
    train: ImageDataset
    val: ImageDataset
    test: ImageDataset | None = None
    left_out: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    unlabelled: str = ""
    task: TaskName = "classify"
    measured: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, labels or values."""
        return len(self.classes)

    def with_names(self, names: Sequence[str]) -> "Splits":
        """Return the splits with labels as indices into other names, such as a model's classes.

        Args:
            names: The data's classes, labels or values in any order; of classes and labels perhaps more.

        Raises:
            ValueError: The data has classes, labels or values that are none of the names.
        """
        names = tuple(names)
        strange = [name for name in self.classes if name not in names]
        lacking = [name for name in names if name not in self.classes]
        if strange or (lacking and (self.task == "regression" or not self.train.listed)):
            what = {"classify": "classes", "multilabel": "labels", "regression": "values"}[self.task]
            raise ValueError(
                f"the data must have the model's {len(names)} {what}, got {len(self.classes)}; "
                f"unknown to the model: {', '.join(strange) or 'none'}; "
                f"lacking in the data: {', '.join(lacking) or 'none'}"
            )
        if names == self.classes:
            return self
        places = torch.tensor([names.index(name) for name in self.classes])

        def renamed(images: ImageDataset) -> ImageDataset:
            images, labels = copy(images), images.labels
            if self.task == "classify":
                images.labels = places[labels]
            else:
                images.labels = labels.new_zeros(len(labels), len(names))
                images.labels[:, places] = labels
            return images

        test = None if self.test is None else renamed(self.test)
        return replace(self, classes=names, train=renamed(self.train), val=renamed(self.val), test=test)

    def __post_init__(self) -> None:
        for name in self.classes:
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"names of classes must be UTF-8, got {os.fsencode(name)!r}: rename its folder"
                ) from error
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"names of classes must differ, got {twice!r} twice")
        for split, images in (("train", self.train), ("val", self.val), ("test", self.test)):
            if images is None:
                continue
            if len(images) == 0:
                raise ValueError(f"the {split} split has no {images.kind}s")
            if not images.listed:
                continue
            if self.task != "classify":
                self._check_rows(split, images)
            elif self.classes:
                self._check_classes(split, images)
        if self.measured:
            return
        if self.task != "classify":
            self._check_training_rows()
            return
        present = set(self.train.labels.tolist())
        if self.classes and self.train.listed and len(present) < 2:
            kind = self.train.kind
            raise ValueError(
                f"training needs {kind}s of at least 2 classes; all "
                f"{len(self.train)} training {kind}s are of class {self.classes[min(present)]!r}"
            )

    def _check_classes(self, split: str, images: ImageDataset) -> None:
        outside = ((images.labels < 0) | (images.labels >= len(self.classes))).nonzero().flatten().tolist()
        if outside:
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1} for {len(self.classes)} classes; "
                f"{images.name(outside[0])} in {split} has label {int(images.labels[outside[0]])}"
                + (f" ({len(outside)} such {images.kind}s)" if len(outside) > 1 else "")
            )

    def _check_rows(self, split: str, images: ImageDataset) -> None:
        if images.labels.shape != (len(images), len(self.classes)) or not images.labels.is_floating_point():
            raise ValueError(
                f"{self.task} needs a row of {len(self.classes)} targets for each image of {split}, got "
                f"{images.labels.dtype} of shape {tuple(images.labels.shape)}"
            )
        fits = images.labels.isfinite()
        if self.task == "multilabel":
            fits = (images.labels == 0) | (images.labels == 1)
        wrong = (~fits.all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            rule = "0 or 1" if self.task == "multilabel" else "finite numbers"
            found = images.labels[wrong[0]].tolist()
            raise ValueError(f"targets must be {rule}; {images.name(wrong[0])} in {split} has {found}")

    def _check_training_rows(self) -> None:
        if not self.classes:
            raise ValueError(
                f"training needs labels: none of its {len(self.train)} {self.train.kind}s has one"
            )
        same = (self.train.labels == self.train.labels[0]).all(dim=0)
        if same.all() if self.task == "multilabel" else same.any():
            column = int(same.nonzero()[0])
            value = float(self.train.labels[0, column])
            raise ValueError(
                f"training needs images that differ in what is learned; all {len(self.train)} training "
                f"{self.train.kind}s have {value:g} for {self.classes[column]!r}"
            )


def warn_of_names(names: Sequence[str]) -> None:
    """Warn of names of classes or labels that may be meant as one, or as none."""
    plain = Counter(map(_plain_name, names))
    if alike := [name for name in names if plain[_plain_name(name)] > 1]:
        warnings.warn(
            "names of classes differ only in case, spaces, hyphens, encoding, letters that look alike or "
            "how a number is written: "
            f"{', '.join(map(ascii, alike[:6]))}",
            stacklevel=3,
        )
    if missing := [name for name in names if _plain_name(name) in MISSING]:
        warnings.warn(
            f"{missing[0]!r} is learned like any other name: if it stands for labels that are missing, leave "
            "these images out",
            stacklevel=3,
        )


def _plain_name(name: str) -> str:
    """Return a name without what people do not see, or may write in several ways."""
    plain = "".join(each for each in name if unicodedata.category(each) not in ("Cc", "Cf"))
    plain = unicodedata.normalize("NFKC", plain).strip().casefold().translate(LOOK_ALIKE)
    plain = re.sub(r"(?<=\w)[-_ ]+(?=\w)", " ", plain)
    # 1, 01 and 1.0
    return repr(float(plain)) if re.fullmatch(r"\d{1,15}(\.\d*)?", plain) else plain


def convert_channels(images: Shaped[Tensor, "*b c h w"], channels: int) -> Shaped[Tensor, "*b d h w"]:
    """Turn grey into RGB by repetition, or RGB into grey by ITU-R 601 luma.

    Raises:
        ValueError: Neither is what was asked for.
    """
    present = images.shape[-3]
    if present == channels:
        return images
    if present == 1:
        return images.expand(*images.shape[:-3], channels, *images.shape[-2:])
    if (present, channels) == (3, 1):
        return F.rgb_to_grayscale(images)
    raise ValueError(f"images of {present} channels cannot be read as channels={channels}")


def split_off(
    images: ImageDataset, fraction: float, seed: int, classes: Sequence[str], *, purpose: str
) -> tuple[ImageDataset, ImageDataset]:
    """Hold out a fraction of every class, or of all images with rows of targets, chosen by the seed alone.

    Args:
        images: What is split.
        fraction: Part of each class that is held out, between 0 and 1; rounded, but one image at the least.
        seed: Chooses the images.
        classes: Names, for messages.
        purpose: What the held-out part is called in messages.

    Returns:
        The rest, and the part that is held out, both in the order that they had.

    Raises:
        ValueError: The fraction is not between 0 and 1, or a class has a single image.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the {purpose} fraction must be between 0 and 1, got {fraction}")
    generator = generator_for(seed)
    held = torch.zeros(len(images), dtype=torch.bool)
    by_class = images.labels.ndim == 1
    groups = images.labels if by_class else torch.zeros(len(images), dtype=torch.long)
    for label in sorted(set(groups.tolist())):
        members = (groups == label).nonzero().flatten()
        if len(members) < 2:
            known = f"class {classes[label]!r}" if by_class and 0 <= label < len(classes) else "the data"
            raise ValueError(
                f"{known} has {len(members)} {images.kind} left ({images.name(int(members[0]))}); "
                f"holding out a {purpose} split needs at least 2 in each class"
            )
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return images.subset((~held).nonzero().flatten()), images.subset(held.nonzero().flatten())
