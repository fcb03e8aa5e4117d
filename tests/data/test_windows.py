"""Images of 12 bits in files of 16, floats, and other channels reach the model with all of their values."""

import io
import math
import struct
import sys
import types
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vit_pytorch.data import (
    ArrayImages,
    BadImageError,
    FileImages,
    ImageData,
    ImageLoader,
    Preprocessing,
    Splits,
    check_range,
    decode_image,
    load_images,
    measure_window,
)
from vit_pytorch.data.decode import EXTENSIONS, is_image, read_values
from vit_pytorch.data.listing import extension
from vit_pytorch.preprocessing import VolumeConfig, preprocessing_for
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.registry import find_entry
from vit_pytorch.training.config import DataConfig, TrainConfig
from vit_pytorch.training.distillation import Teacher
from vit_pytorch.training.problems import Classification
from vit_pytorch.training.run import with_preprocessing_of
from vit_pytorch.training.saved import note_preprocessing

TWELVE_BITS = (0.0, 4095.0)


def encoded(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def twelve_bits(folder: Path, count: int = 12) -> FileImages:
    """Grey images whose values go from 0 to 4095, in PNG files of 16 bits."""
    paths = []
    for i in range(count):
        array = np.linspace(0, 4095, 4096).round().astype(np.uint16).reshape(64, 64)
        paths.append(folder / f"{i}.png")
        Image.fromarray(np.roll(array, i)).save(paths[-1])
    return FileImages(paths, torch.arange(count) % 2)


def test_12_bits_keep_256_levels_by_a_window(tmp_path: Path) -> None:
    images = twelve_bits(tmp_path)
    plain, windowed = (decode_image(images.paths[0], channels=1, window=w) for w in (None, TWELVE_BITS))
    assert (len(plain.unique()), int(plain.max())) == (17, 16)
    assert (len(windowed.unique()), int(windowed.min()), int(windowed.max())) == (256, 0, 255)
    assert decode_image(images.paths[0], channels=1, window=(1000, 1001)).unique().tolist() == [0, 255]


def test_the_window_reaches_the_model(tmp_path: Path) -> None:
    images = twelve_bits(tmp_path)
    prep = Preprocessing((64, 64), channels=1, mean=(0,), std=(1,), window=TWELVE_BITS)
    ((batch, _),) = list(ImageLoader(images, prep, None, batch_size=12, num_classes=2))
    assert batch.min() == 0
    assert batch.max() == 1
    (_, image), *_ = load_images([images.paths[0]], channels=1, window=TWELVE_BITS)
    assert image.max() == 255


def test_a_window_acts_on_images_in_memory() -> None:
    pixels = torch.arange(16, dtype=torch.uint8).repeat(4).view(1, 1, 8, 8).expand(4, -1, -1, -1)
    images = ArrayImages(pixels, torch.tensor([0, 1, 0, 1]), origin="made")
    prep = Preprocessing((8, 8), channels=1, mean=(0,), std=(1,), window=(0, 15))
    ((batch, _),) = list(ImageLoader(images, prep, None, batch_size=4, num_classes=2))
    assert batch.max() == 1
    assert images.look(0, prep).max() == 255


def test_auto_measures_the_training_images(tmp_path: Path) -> None:
    images = twelve_bits(tmp_path)
    assert measure_window(images, 1) == pytest.approx((0.005 * 4095, 0.995 * 4095), abs=1)
    data = ImageData(
        Splits(("a", "b"), images, images), image_size=64, channels=1, batch_size=4, window="auto"
    )
    assert data.preprocessing.window == measure_window(images, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.train_dataloader()


def test_images_that_use_little_of_their_range_are_warned_of(tmp_path: Path) -> None:
    images = twelve_bits(tmp_path)
    data = ImageData(Splits(("a", "b"), images, images), image_size=64, channels=1, batch_size=4)
    message = r"such as \S+ use 6\.2% of their range: values 20 to 4075 of 0 to 65535 \(data\.window auto"
    with pytest.warns(UserWarning, match=message):
        data.train_dataloader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.train_dataloader()
        check_range(
            ArrayImages(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8), torch.zeros(1), origin=""), 1
        )
    dark = ArrayImages(torch.full((2, 1, 8, 8), 7, dtype=torch.uint8), torch.zeros(2), origin="")
    with pytest.warns(UserWarning, match=r"use 0\.0% of their range: values 7 to 7 of 0 to 255$"):
        check_range(dark, 1)
    with pytest.raises(ValueError, match="no window for images whose values are all 7"):
        measure_window(dark, 1)


@pytest.mark.parametrize("window", [(1, 1), (2, 1), (0, math.inf), (-math.inf, 0), (math.nan, 1), (1, 2, 3)])
def test_windows_out_of_range(window: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="window must be a range"):
        Preprocessing((8, 8), window=window)
    with pytest.raises(ValueError, match="window must be a range"):
        VolumeConfig(window=window)
    with pytest.raises(ValueError, match=r"data\.window must be a range"):
        DataConfig(window=window)


def test_8_bits_are_not_shown_by_a_window_of_more(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "eight.png")
    message = r"eight\.png: its values have 8 bits, and the window \(data\.window\) of 0 to 4095 is for more"
    with pytest.raises(BadImageError, match=message):
        decode_image(tmp_path / "eight.png", channels=1, window=TWELVE_BITS)
    assert decode_image(tmp_path / "eight.png", channels=1, window=(0, 200)).unique().tolist() == [255]


def test_a_window_comes_with_weights(tmp_path: Path) -> None:
    entry = find_entry("vit_tiny_patch16_224")
    model = entry.build(**entry.tiny)
    note_preprocessing(model, replace(preprocessing_for(model), window=TWELVE_BITS))
    model.save_pretrained(tmp_path)
    start = entry.build(**entry.tiny)
    load_pretrained(start, tmp_path)
    config = TrainConfig(model={"name": "vit_tiny_patch16_224"})
    assert with_preprocessing_of(start, config).data.window == TWELVE_BITS
    own = replace(config, data=DataConfig(window=(0, 65535)))
    assert with_preprocessing_of(start, own).data.window == (0, 65535)


def test_preparation_of_volumes_comes_with_weights(tmp_path: Path) -> None:
    entry = find_entry("videomae_small_patch16_224")
    model = entry.build(**entry.tiny)
    bone = VolumeConfig(window=(-450, 1050), spacing=(1, 1, 1))
    note_preprocessing(model, replace(preprocessing_for(model), volume=bone))
    model.save_pretrained(tmp_path)
    start = entry.build(**entry.tiny)
    load_pretrained(start, tmp_path)
    config = TrainConfig(model={"name": entry.name})
    assert with_preprocessing_of(start, config).data.volume == bone
    own = VolumeConfig(window=(0, 1))
    assert with_preprocessing_of(start, replace(config, data=DataConfig(volume=own))).data.volume == own


def test_a_teacher_needs_the_window_of_the_student() -> None:
    entry = find_entry("vit_tiny_patch16_224")
    model = entry.build(**entry.tiny)
    own = replace(preprocessing_for(model), window=TWELVE_BITS)
    problem = Classification(tuple(map(str, range(model.num_classes))))
    Teacher(model, problem, own=own, given=replace(own, window=(10, 4090)))
    for other in (None, (0, 65535), (100, 4095)):
        with pytest.raises(ValueError, match=r"the teacher's images have the window \(0\.0, 4095\.0\)"):
            Teacher(model, problem, own=own, given=replace(own, window=other))


def test_a_window_for_volumes_has_its_own_name() -> None:
    with pytest.raises(ValueError, match=r"volumes have one of their own \(volume\.window\)"):
        Preprocessing((8, 8), frames=2, window=(0, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
@pytest.mark.parametrize("kind", ["tiff", "npy"])
def test_values_without_a_defined_range_need_a_window(dtype: type, kind: str) -> None:
    array = np.array([[-100, 0, 100, 300]], dtype=dtype)
    data = encoded(array) if kind == "tiff" else saved(array)
    with pytest.raises(BadImageError, match=r"have no defined range: name a window"):
        decode_image(data)
    assert decode_image(data, channels=1, window=(-100, 155)).flatten().tolist() == [0, 100, 200, 255]


def test_what_is_not_a_number_counts_as_the_lowest() -> None:
    data = encoded(np.array([[np.nan, np.inf, -np.inf, 1]], dtype=np.float32))
    assert decode_image(data, channels=1, window=(0, 2)).flatten().tolist() == [0, 255, 0, 128]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 4, 5, 8])
def test_tiff_files_of_many_channels(channels: int, planar: str) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (channels, 30, 40)).astype(np.uint16)
    stored = array if planar == "separate" else np.moveaxis(array, 0, 2)
    data = encoded(stored, photometric="minisblack", planarconfig=planar)
    expected = torch.from_numpy(((array.astype(np.int64) + 128) // 257).astype(np.uint8))
    assert torch.equal(decode_image(data, channels=channels), expected)
    assert torch.equal(read_values(data, channels=channels), torch.from_numpy(array.astype(np.int32)))
    with pytest.raises(BadImageError, match=f"it has {channels} channels, 3 are wanted"):
        decode_image(data)


def test_pages_are_channels_or_refused() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 30, 40)).astype(np.uint8)
    data = encoded(array, photometric="minisblack")
    assert torch.equal(decode_image(data, channels=6), torch.from_numpy(array))
    with pytest.raises(BadImageError, match=r"has 6 pages, an image has one \(data\.channels 6 takes them"):
        decode_image(data)


def test_16_bits_of_colour_are_read_in_full_by_a_window() -> None:
    array = np.linspace(0, 4095, 30 * 40 * 3).reshape(30, 40, 3).round().astype(np.uint16)
    data = encoded(array, photometric="rgb")
    assert len(decode_image(data).unique()) == 16
    assert len(decode_image(data, window=TWELVE_BITS).unique()) == 256
    assert torch.equal(read_values(data), torch.from_numpy(np.moveaxis(array, 2, 0).astype(np.int32)))


@pytest.mark.parametrize("axis", [0, 2])
def test_arrays_with_channels_first_or_last(axis: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 30, 40)).astype(np.uint8)
    data = saved(np.moveaxis(array, 0, axis))
    assert torch.equal(decode_image(data, channels=5), torch.from_numpy(array))
    with pytest.raises(BadImageError, match=r"an array of shape .*: 3 channels are wanted"):
        decode_image(data)


def test_arrays_that_are_no_images() -> None:
    for array, message in (
        (np.zeros((3, 8, 3), np.uint8), "its first or its last axis may be channels"),
        (np.zeros(8, np.uint8), r"got the shape \(8,\)"),
        (np.zeros((4, 4), np.complex64), "values must be real numbers, got complex64"),
        (np.zeros((4, 4), bool), "values must be real numbers, got bool"),
        (np.array([[{}]]), "pickle"),
    ):
        with pytest.raises(BadImageError, match=message):
            decode_image(saved(array))
    with pytest.raises(BadImageError, match="exceeds the limit of 10 pixels"):
        decode_image(saved(np.zeros((100, 100), np.uint8)), max_pixels=10)


def test_four_channels_of_png_are_taken_as_they_are() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 4)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array, "RGBA").save(file, "PNG")
    assert torch.equal(decode_image(file.getvalue(), channels=4), torch.from_numpy(array).permute(2, 0, 1))
    with pytest.raises(BadImageError, match="it has 4 channels, 5 are wanted"):
        decode_image(file.getvalue(), channels=5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jfif", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.avif", "AVIF"),
        ("a.jp2", "JPEG2000"),
        ("a.tga", "TGA"),
        ("a.ico", "ICO"),
    ],
)
def test_other_formats_are_read(tmp_path: Path, name: str, kind: str) -> None:
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    image.save(tmp_path / name, kind)
    assert extension(name) in EXTENSIONS
    colour = decode_image(tmp_path / name).float().mean((1, 2))
    assert (colour - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 4
    if kind not in ("TGA", "ICO"):
        assert is_image(tmp_path / name)


def test_garbage_is_no_targa(tmp_path: Path) -> None:
    """The format has no signature, so that its name has to tell it."""
    image = Image.new("RGB", (32, 32))
    image.save(tmp_path / "a.tga")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.tga").read_bytes())
    with pytest.raises(BadImageError, match="not an image"):
        decode_image(tmp_path / "a.png")


def test_heic_by_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\0\0\0\x18ftypheic" + bytes(64)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImportError, match=r"HEIC images need pillow-heif: pip install -e '.\[heic\]'"):
        decode_image(data)
    called: list[bool] = []
    library = types.ModuleType("pillow_heif")
    library.register_heif_opener = lambda: called.append(True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    with pytest.raises(BadImageError):
        decode_image(data)
    assert called


def png(array: np.ndarray) -> bytes:
    """A PNG file of 16 bits, grey or colour, which Pillow does not write."""
    height, width = array.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if array.ndim == 3 else 0, 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("write", [png, encoded, saved])
def test_8_bits_in_files_of_16_are_warned_of(write: Callable[[np.ndarray], bytes], channels: int) -> None:
    """Not where all values are 0, nor where a window says what they mean."""
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    ramp = ramp if channels == 1 else np.stack([ramp] * 3, axis=-1)
    with pytest.warns(
        UserWarning, match=r"16 bits are below 256, so that it is black: .* window \(data\.win"
    ):
        assert decode_image(write(ramp), channels=channels).max() <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dark = decode_image(write(ramp), channels=channels, window=(0, 255))
        assert dark.flatten(1)[0].tolist() == list(range(256))
        for array in (ramp * 0, ramp + 1):
            assert decode_image(write(array), channels=channels).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.9), (0, 0.1)])
def test_a_window_for_images_of_other_values_is_warned_of(low: float, high: float) -> None:
    """An image of 8 bits for a model of floats would be white without a word."""
    photograph = np.arange(1024).reshape(32, 32) % 250 + 2
    with pytest.warns(UserWarning, match=rf"above the window .* of {low:g} to {high:g}, so that it is white"):
        assert decode_image(saved(photograph.astype(np.uint8)), channels=1, window=(low, high)).min() == 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a mask, and what is empty
        assert decode_image(saved(np.ones((8, 8), np.uint8)), channels=1, window=(0, 1)).min() == 255
        assert decode_image(saved(np.full((8, 8), -1000.0)), channels=1, window=(0, 400)).max() == 0
