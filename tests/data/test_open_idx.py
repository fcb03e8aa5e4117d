import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_pytorch.data import ArrayImages, open_data


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">I{values.ndim}I", 0x0800 | values.ndim, *values.shape) + values.tobytes()


def write(path: Path, data: bytes, *, zipped: bool) -> None:
    path = path.with_name(path.name + ".gz") if zipped else path
    path.write_bytes(gzip.compress(data) if zipped else data)


@pytest.fixture(params=[False, True], ids=["plain", "gzipped"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for prefix, count in (("train", 30), ("t10k", 6)):
        images = np.random.default_rng(count).integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        write(tmp_path / f"{prefix}-images-idx3-ubyte", idx_bytes(images), zipped=request.param)
        write(tmp_path / f"{prefix}-labels-idx1-ubyte", idx_bytes(labels), zipped=request.param)
    return tmp_path


def test_test_files_alone_are_measured(folder: Path) -> None:
    for file in folder.glob("train-*"):
        file.unlink()
    splits = open_data(f"idx:{folder}", whole=True)
    assert splits.test is not None
    assert (splits.measured, splits.classes) == (("test",), ("0", "1", "2"))
    assert splits.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="must hold one file"):
        open_data(f"idx:{folder}")


def test_learning_without_labels_takes_any_images(folder: Path) -> None:
    assert open_data(f"idx:{folder}", unlabelled=True).unlabelled == ""
    for file in {*folder.glob("*labels*"), *folder.glob("t10k*")}:
        file.unlink()
    splits = open_data(f"idx:{folder}", unlabelled=True)
    assert (splits.classes, splits.test, len(splits.train), len(splits.val)) == ((), None, 27, 3)
    assert "must hold one file *train-labels?idx1-ubyte[.gz], got none" in splits.unlabelled
    with pytest.raises(ValueError, match="must hold one file"):
        open_data(f"idx:{folder}")


def test_images_labels_and_splits(folder: Path) -> None:
    splits = open_data(f"idx:{folder}", val_fraction=0.2)
    assert isinstance(splits.train, ArrayImages)
    assert isinstance(splits.test, ArrayImages)
    assert splits.classes == ("0", "1", "2")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 6, 6)
    assert splits.val.labels.bincount().tolist() == [2, 2, 2]
    expected = np.random.default_rng(6).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    assert torch.equal(splits.test.images[:, 0], torch.from_numpy(expected))
    assert splits.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    source = np.random.default_rng(30).integers(0, 256, (30, 5, 4), dtype=np.uint8)
    assert torch.equal(splits.train.images[:, 0], torch.from_numpy(source)[splits.train.positions])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack(">II", 0x0801, 3) + bytes(3), "must begin with 00000803, got 00000801"),
        (b"", "must begin with 00000803, got nothing"),
        (struct.pack(">II", 0x0803, 3), "must have a header of 16 bytes, got 8"),
        (struct.pack(">4I", 0x0803, 0, 5, 4), r"is empty: its header gives the shape \(0, 5, 4\)"),
        (struct.pack(">4I", 0x0803, 30, 5, 4) + bytes(599), "must hold 600 bytes .* got 599"),
        (struct.pack(">4I", 0x0803, 30, 5, 4) + bytes(601), "must hold 600 bytes .* got more"),
        (struct.pack(">4I", 0x0803, 29, 5, 4) + bytes(580), "29 images, but .* has 30 labels"),
    ],
)
@pytest.mark.parametrize("folder", [False], indirect=True)
def test_malformed_file_is_named(folder: Path, data: bytes, message: str) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(data)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte.* {message}"):
        open_data(f"idx:{folder}")


@pytest.mark.parametrize("folder", [True], indirect=True)
def test_truncated_gzip_is_named(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is a broken gzip file"):
        open_data(f"idx:{folder}")


@pytest.mark.parametrize("folder", [False], indirect=True)
def test_missing_and_ambiguous_files(folder: Path) -> None:
    labels = folder / "t10k-labels-idx1-ubyte"
    (folder / "other-t10k-labels-idx1-ubyte").write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match=r"one file .*t10k-labels.*, got other-t10k"):
        open_data(f"idx:{folder}")
    (folder / "other-t10k-labels-idx1-ubyte").unlink()
    labels.unlink()
    with pytest.raises(ValueError, match="got none"):
        open_data(f"idx:{folder}")


@pytest.mark.parametrize("folder", [False], indirect=True)
def test_test_label_that_training_does_not_have(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.array([0, 1, 2, 9, 0, 1], dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\[3\] in test has label 9"):
        open_data(f"idx:{folder}")


@pytest.mark.parametrize("folder", [False], indirect=True)
def test_test_files_by_their_other_name(folder: Path) -> None:
    for part in ("images-idx3", "labels-idx1"):
        (folder / f"t10k-{part}-ubyte").rename(folder / f"emnist-test-{part}-ubyte")
    splits = open_data(f"idx:{folder}")
    assert splits.test is not None
    assert len(splits.test) == 6
