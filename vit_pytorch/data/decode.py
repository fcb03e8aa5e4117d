"""Reading one image file: bounded, exact about colour, and clear about what is wrong with a bad file."""

import errno
import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vit_pytorch.data.arrays import (
    NPY,
    TIFF,
    UnfitError,
    read_npy,
    read_tiff,
    scale,
    warn_of_8_bits,
    wide_values,
)
from vit_pytorch.extras import install_command
from vit_pytorch.preprocessing import TRANSPARENT

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pbm"),
        *("avif", "jp2", "heic", "heif", "tga", "ico", "npy"),
    )
)
HEIF = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1")
# how files of these types begin: JPEG, PNG, BMP, GIF, TIFF of either order, JPEG 2000
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
MAX_PIXELS = 89_478_485
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")


class BadImageError(ValueError):
    """An image that cannot be decoded, or may not be: broken, too large, or without a defined range.

    Args:
        name: The path of the file, or where else the image comes from.
        reason: What is wrong with it.
        kind: What it is: an image, a video or a volume.
    """

    def __init__(self, name: str, reason: str, kind: str = "image") -> None:
        super().__init__(name, reason, kind)
        self.name = name
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return f"bad {self.kind} {self.name}: {self.reason}"


@contextmanager
def open_regular(path: Path, kind: str = "image") -> Iterator[BinaryIO]:
    """Open a regular file that has content for reading, perhaps behind a link.

    Raises:
        BadImageError: It is empty, a pipe or a device, a folder, a link to nothing, or must not be read.
        FileNotFoundError: There is no such file.
    """
    try:
        mode = path.stat().st_mode
        # Opening a pipe would wait for somebody to write to it.
        if not stat.S_ISREG(mode):
            raise BadImageError(str(path), "it is no regular file", kind)
        file = path.open("rb")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            raise
        raise _unreadable(error, str(path), kind) from error
    with file:
        if not file.read(1):
            raise BadImageError(str(path), "the file is empty", kind)
        file.seek(0)
        yield file


def _unreadable(error: OSError, name: str, kind: str) -> Exception:
    """Return the error for a file that the system does not open: that of a bad image, unless the system lacks
    memory or handles."""
    if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return error
    return BadImageError(name, f"it cannot be read: {error.strerror or error}", kind)


def is_image(path: Path) -> bool:
    """Return whether a file begins as one of the known types of images does."""
    try:
        with open_regular(path) as file:
            head = file.read(12)
    except BadImageError:
        return False
    if head[:4] == b"RIFF":
        return head[8:] == b"WEBP"
    return head.startswith(SIGNATURES) or head[4:] in (b"ftypavif", *HEIF)


def decode_image(
    source: Path | bytes,
    *,
    channels: int = 3,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    window: tuple[float, float] | None = None,
) -> UInt8[Tensor, "c h w"]:
    """Decode an image to 8 bits per channel, upright, in grey, RGB or with channels of its own.

    16-bit values are scaled to 8 bits (65535 becomes 255, or what the window says), a palette is resolved,
    transparency is composited on white, CMYK is converted without a colour profile, and the EXIF orientation
    is applied. The size is taken from the header, before anything is decompressed. An animation gives its
    first frame; the pages of a TIFF file are its channels, or it is refused.

    Args:
        source: A path, or the bytes of a file.
        channels: 3 for RGB, 1 for grey (luma of ITU-R 601); others for files that have as many.
        name: What error messages call the image; a path is its own name.
        max_pixels: The largest height times width that is decoded.
        window: Values of the file that become 0 and 255; the whole range of 8 or 16 bits if left out.

    Returns:
        The image, values 0 to 255.

    Raises:
        BadImageError: The file is empty, truncated, not an image, larger than ``max_pixels``, holds 32-bit
            values, whose range is not defined, without a window, has other channels or several pages, or is
            no regular file that this user may read.
        FileNotFoundError: There is no such file.
        ImportError: A library for the format is not installed.
        ValueError: ``channels`` is not positive.
    """
    if channels < 1:
        raise ValueError(f"an image has at least 1 channel, got channels={channels}")
    with _opened(source, name) as (file, called):
        return _decode(file, channels, called, max_pixels, window)


def read_values(
    source: Path | bytes, *, channels: int = 3, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Shaped[Tensor, "c h w"]:
    """Return the values of an image as its file has them: uint8, int32 for 16 bits without sign, or float32.

    Args:
        source: A path, or the bytes of a file.
        channels: Of the image, as for `decode_image`; grey and colour are not converted into each other.
        name: What error messages call the image.
        max_pixels: The largest height times width that is decoded.

    Raises:
        BadImageError: As for `decode_image`.
    """
    with _opened(source, name) as (file, called), _faults_named(file, called):
        values = _read(file, channels, called, max_pixels, exact=True)
        if isinstance(values, Image.Image):
            return _to_8_bits(values, 3)
        return values


def read_size(file: BinaryIO) -> tuple[int, int] | None:
    """Return the sides of an image by its header, the shorter first; None where Pillow does not know it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            width, height = Image.open(file, formats=FORMATS).size
        except Exception:  # as for decoding: whatever it is, training says it
            return None
    return min(width, height), max(width, height)


def from_pillow(image: Image.Image, channels: int, name: str = "(image)") -> UInt8[Tensor, "c h w"]:
    """Return an open Pillow image of 8 bits as `decode_image` returns a file: upright, transparency on white.

    Args:
        image: The image.
        channels: 3 for RGB, 1 for grey; others for images that have as many.
        name: What error messages call it.

    Raises:
        BadImageError: It has more than 8 bits, or other channels.
    """
    if image.mode.startswith(("I", "F")):
        raise BadImageError(
            name, f"Pillow mode {image.mode!r} has no range of its own: pass its file, or an array"
        )
    with _faults_named(io.BytesIO(), name):
        values = _to_8_bits(ImageOps.exif_transpose(image), channels)
    if len(values) != channels:
        raise BadImageError(name, f"it has {len(values)} channels, {channels} are wanted")
    return values


@contextmanager
def _opened(source: Path | bytes, name: str | None) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, Path):
        with open_regular(source) as file:
            yield file, str(source) if name is None else name
        return
    name = "(bytes)" if name is None else name
    if not source:
        raise BadImageError(name, "the file is empty")
    yield io.BytesIO(source), name


@contextmanager
def _faults_named(file: BinaryIO, name: str) -> Iterator[None]:
    try:
        yield
    except (BadImageError, MemoryError, ImportError):
        raise
    except UnfitError as error:
        raise BadImageError(name, str(error)) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        raise BadImageError(name, f"not an image; it begins with {file.read(16)!r}") from error
    except Exception as error:  # decoders raise many types on broken bytes, and Pillow has no list of them
        raise BadImageError(name, f"{type(error).__name__}: {error}") from error


def _decode(
    file: BinaryIO, channels: int, name: str, max_pixels: int, window: tuple[float, float] | None
) -> UInt8[Tensor, "c h w"]:
    with _faults_named(file, name):
        values = _read(file, channels, name, max_pixels, exact=window is not None)
        if isinstance(values, Image.Image):
            opened, values = values, _to_8_bits(values, channels)
            if window is None and opened.format in ("PNG", "TIFF") and not values.any():
                # of 16 bits of colour Pillow reads the upper 8
                file.seek(0)
                exact = _read(file, channels, name, max_pixels, exact=True)
                if isinstance(exact, Tensor) and exact.dtype == torch.int32:
                    warn_of_8_bits(exact)
        values = scale(values, window)
        if len(values) == channels:
            return values
        if len(values) == 1 and channels == 3:
            return values.expand(3, -1, -1)
        if len(values) == 3 and channels == 1:
            return F.rgb_to_grayscale(values)
        raise UnfitError(f"it has {len(values)} channels, {channels} are wanted (data.channels)")


def _read(
    file: BinaryIO, channels: int, name: str, max_pixels: int, *, exact: bool
) -> Shaped[Tensor, "c h w"] | Image.Image:
    """Return an image of 8 bits as Pillow has it, upright, and any other as its values."""
    head = file.read(16)
    file.seek(0)
    if head.startswith(NPY):
        return read_npy(file, channels, max_pixels)
    formats = [*FORMATS, "TGA"] if name.lower().endswith(".tga") else list(FORMATS)
    if head[4:12] in HEIF:
        _register_heif()
        formats.append("HEIF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(file, formats=formats)
        except UnidentifiedImageError:
            if not head.startswith(TIFF):
                raise
            # Pillow knows TIFF files of up to four channels.
            return read_tiff(file, max_pixels)
    width, height = opened.size
    if width * height > max_pixels:
        raise BadImageError(name, f"{width} x {height} pixels exceed the limit of {max_pixels}")
    values = wide_values(opened, file, channels, max_pixels, exact=exact)
    if values is not None:
        return values
    pixels = _decode_jpeg(opened, file) if channels == 3 else None
    if pixels is not None:
        return pixels
    opened.load()
    ImageOps.exif_transpose(opened, in_place=True)
    return opened


def _decode_jpeg(opened: Image.Image, file: BinaryIO) -> UInt8[Tensor, "3 h w"] | None:
    """Decode a JPEG image of three channels, upright, by simplejpeg, where that is installed.

    It takes 0.7 of Pillow's time for the same bytes: both are libjpeg-turbo, with the same settings. What it
    refuses, Pillow decodes, or says what is wrong with it.
    """
    if simplejpeg is None or opened.format != "JPEG" or opened.mode != "RGB":
        return None
    if opened.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        return None
    file.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), colorspace="RGB", strict=True)
    except ValueError:
        return None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ImportError(f"HEIC images need pillow-heif: {install_command('heic')}") from error
    register_heif_opener()


def _to_8_bits(image: Image.Image, channels: int) -> UInt8[Tensor, "c h w"]:
    """Return grey or RGB, composited on white, since ``convert`` drops transparency; else all channels."""
    if channels in (1, 3):
        if image.mode in TRANSPARENT or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        mode = "L" if channels == 1 else "RGB"
        # converting copies, whatever it is
        image = image if image.mode == mode else image.convert(mode)
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)
