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
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
# how files of these types begin: JPEG, PNG, BMP, GIF, TIFF of either order, JPEG 2000
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
MAX_PIXELS = 89_478_485
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


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
    return head.startswith(SIGNATURES) or head[4:] in (b"ftypavif", b"ftypheic", b"ftypmif1")


def decode_image(
    source: Path | bytes, *, channels: int = 3, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[Tensor, "c h w"]:
    """Decode an image to 8 bits per channel, upright, in grey or RGB.

    16-bit grey is scaled to 8 bits (65535 becomes 255), a palette is resolved, transparency is composited on
    white, CMYK is converted without a colour profile, and the EXIF orientation is applied. The size is taken
    from the header, before anything is decompressed. An animation gives its first frame.

    Args:
        source: A path, or the bytes of a file.
        channels: 3 for RGB, 1 for grey (luma of ITU-R 601).
        name: What error messages call the image; a path is its own name.
        max_pixels: The largest height times width that is decoded.

    Returns:
        The image, values 0 to 255.

    Raises:
        BadImageError: The file is empty, truncated, not an image, larger than ``max_pixels``, holds 32-bit
            values, whose range is not defined, or is no regular file that this user may read.
        FileNotFoundError: There is no such file.
        ValueError: ``channels`` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"an image file decodes to 1 or 3 channels, got channels={channels}")
    if isinstance(source, Path):
        with open_regular(source) as file:
            return _decode(file, channels, str(source) if name is None else name, max_pixels)
    name = "(bytes)" if name is None else name
    if not source:
        raise BadImageError(name, "the file is empty")
    return _decode(io.BytesIO(source), channels, name, max_pixels)


def _decode(file: BinaryIO, channels: int, name: str, max_pixels: int) -> UInt8[Tensor, "c h w"]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(file, formats=FORMATS)
        width, height = opened.size
        if width * height > max_pixels:
            raise BadImageError(name, f"{width} x {height} pixels exceed the limit of {max_pixels}")
        opened.load()
        upright = ImageOps.exif_transpose(opened)
        image = _to_8_bits(upright, opened.format, name).convert("L" if channels == 1 else "RGB")
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        file.seek(0)
        raise BadImageError(name, f"not an image; it begins with {file.read(16)!r}") from error
    except Exception as error:  # decoders raise many types on broken bytes, and Pillow has no list of them
        raise BadImageError(name, f"{type(error).__name__}: {error}") from error
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.ndim == 2 else array.permute(2, 0, 1)


def _to_8_bits(image: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """Scale 16 bits to 8, composite on white: ``Image.convert`` alone clips the one and drops the other."""
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImageError(
            name, f"{file_format} with 32-bit values (mode {image.mode}) has no defined range"
        )
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image
