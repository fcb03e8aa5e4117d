"""IDX files, the format of MNIST and its family, as they are or gzipped.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from vit_pytorch.data.datasets import ArrayImages

UNSIGNED_BYTE = 0x08


def read_idx_folder(
    folder: Path, *, needs_train: bool = True, labelled: bool = True
) -> tuple[dict[str, ArrayImages], tuple[str, ...]]:
    """Read the images of a folder of IDX files: the splits `train` and `test`, and the names of classes.

    Args:
        folder: Holds the files; see `read_idx_split`.
        needs_train: Whether there must be files for training, or those of the test split are enough.
        labelled: Whether there must be labels, and files of the test split; else no labels are read, and
            there are no classes.

    Raises:
        ValueError: As for `read_idx_split`.
    """
    names = {"train": ("train",), "test": ("t10k", "test")}
    if not needs_train and not [*folder.glob("*train-*idx*")]:
        del names["train"]
    if not labelled and not any([*folder.glob(f"*{name}-images?idx3-*")] for name in names["test"]):
        del names["test"]
    parts = {split: read_idx_split(folder, *own, labelled=labelled) for split, own in names.items()}
    known = [parts["train"]] if needs_train else [*parts.values()]
    count = max(int(images.labels.max()) for images in known) + 1
    return parts, tuple(map(str, range(count)))


def read_idx(path: Path, *, ndim: int) -> UInt8[Tensor, "..."]:
    """Read one IDX file of unsigned bytes.

    Args:
        path: The file; a name that ends in ``.gz`` is decompressed.
        ndim: Number of dimensions that the file must have: 3 for images, 1 for labels.

    Returns:
        The values, in the shape that the header gives.

    Raises:
        ValueError: The compressed stream is broken, the magic number is another, or the length is not what
            the header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * ndim)
            magic = UNSIGNED_BYTE << 8 | ndim
            if len(header) < 4 or struct.unpack(">I", header[:4])[0] != magic:
                raise ValueError(f"{path} must begin with {magic:08x}, got {header[:4].hex() or 'nothing'}")
            if len(header) < 4 + 4 * ndim:
                raise ValueError(f"{path} must have a header of {4 + 4 * ndim} bytes, got {len(header)}")
            shape = struct.unpack(f">{ndim}I", header[4:])
            expected = math.prod(shape)
            if expected == 0:
                raise ValueError(f"{path} is empty: its header gives the shape {shape}")
            values = bytearray()
            # in parts, since a damaged header may ask for more bytes than there is memory
            while part := file.read(min(1 << 20, expected + 1 - len(values))):
                values += part
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a broken gzip file: {error}") from error
    if len(values) != expected:
        got = f"{len(values)}" if len(values) < expected else "more"
        raise ValueError(f"{path} must hold {expected} bytes for its shape {shape}, got {got}")
    return torch.from_numpy(np.frombuffer(values, np.uint8)).reshape(shape)


def read_idx_split(folder: Path, *names: str, labelled: bool = True) -> ArrayImages:
    """Read the images and labels of one split, such as ``train`` or ``t10k``.

    Args:
        folder: Holds ``…NAME-images-idx3-ubyte`` and ``…NAME-labels-idx1-ubyte``, perhaps with ``.gz``.
        names: Names of the split, of which the folder has one.
        labelled: Whether there must be labels; else none are read.

    Returns:
        Grey images in memory.

    Raises:
        ValueError: There is not exactly one file for images and one for labels, a file is malformed, or the
            two differ in number.
    """
    images_path = _find(folder, names, "images?idx3-ubyte")
    images = read_idx(images_path, ndim=3)
    if not labelled:
        return ArrayImages(images.unsqueeze(1), torch.full((len(images),), -1), origin=str(images_path))
    labels_path = _find(folder, names, "labels?idx1-ubyte")
    labels = read_idx(labels_path, ndim=1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels"
        )
    return ArrayImages(images.unsqueeze(1), labels.long(), origin=str(images_path))


def _find(folder: Path, names: Sequence[str], ending: str) -> Path:
    found = {
        path.name.removesuffix(".gz"): path
        for name in names
        for path in sorted(folder.glob(f"*{name}-{ending}*"), reverse=True)
        if path.is_file()
    }
    if len(found) != 1:
        listed = ", ".join(sorted(found)) or "none"
        wanted = " or ".join(f"*{name}-{ending}[.gz]" for name in names)
        raise ValueError(f"{folder} must hold one file {wanted}, got {listed}")
    path = next(iter(found.values()))
    _check_twin(path)
    return path


def _check_twin(path: Path) -> None:
    """Check that a compressed file beside a file, as downloads leave it there, holds the same.

    Raises:
        ValueError: It does not.
    """
    packed = path.with_name(f"{path.name}.gz")
    if not packed.is_file():
        return
    try:
        with path.open("rb") as plain, gzip.open(packed) as other:
            same = all(other.read(len(part)) == part for part in iter(lambda: plain.read(1 << 20), b""))
            same = same and not other.read(1)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        same = False
    if not same:
        raise ValueError(f"{packed} does not hold what {path.name} beside it does: remove one of them")
