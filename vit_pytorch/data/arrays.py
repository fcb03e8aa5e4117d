"""Images of more than 8 bits or of any number of channels: as arrays, and scaled to 8 bits by a window."""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vit_pytorch.extras import install_command

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# tags of TIFF
SUBFILE, BITS, ORIENTATION, SAMPLES, EXTRA = 254, 258, 274, 277, 338
ALPHA = (1, 2)
# share of an image's values above a window that is not for it, as a rule
ABOVE = 0.99


class UnfitError(ValueError):
    """An image whose pages, channels or values are not what is asked for; the message says what it has."""


def scale(
    values: Shaped[Tensor, "*b c h w"], window: tuple[float, float] | None
) -> UInt8[Tensor, "*b c h w"]:
    """Scale values to 8 bits.

    Args:
        values: As a file has them; int32 stands for 16 bits without sign.
        window: Values that become 0 and 255; what lies outside is clipped, and what is not a number counts as
            the lowest. None for the whole range of 8 or 16 bits.

    Raises:
        UnfitError: The values have another type, whose range is not defined, and there is no window; or they
            have 8 bits and the window is of more.
    """
    if window is None:
        if values.dtype == torch.uint8:
            return values
        if values.dtype == torch.int32:
            warn_of_8_bits(values)
            return ((values + 128) // 257).to(torch.uint8)
        raise UnfitError("32-bit or signed values have no defined range: name a window (data.window)")
    low, high = window
    if values.dtype == torch.uint8 and high > 255:
        raise UnfitError(
            f"its values have 8 bits, and the window (data.window) of {low:g} to {high:g} is for more"
        )
    if (values > high).float().mean() > ABOVE:
        warnings.warn(
            f"nearly all values of an image are above the window (data.window) of {low:g} to {high:g}, so "
            "that it is white: the window may be for images of other values",
            stacklevel=2,
        )
    scaled = (values.double().nan_to_num(low) - low) / (high - low)
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


def warn_of_8_bits(values: Shaped[Tensor, "*b c h w"]) -> None:
    """Warn where an image of 16 bits has values of 8 bits, of which none is left when it is scaled to 8."""
    if 0 < values.max() < 256:
        warnings.warn(
            "all values of an image of 16 bits are below 256, so that it is black: if they are of 8 bits, "
            "store them so (array.astype(np.uint8)), or train with a window (data.window) of 0 to 255",
            stacklevel=3,
        )


def read_npy(file: BinaryIO, channels: int, max_pixels: int) -> Shaped[Tensor, "c h w"]:
    """Read an array (h, w), (c, h, w) or (h, w, c) from a `.npy` file.

    Raises:
        UnfitError: Its shape is another, it is too large, or channels may be its first or its last axis.
    """
    header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)[0]
    shape = header[version](file)[0]
    if len(shape) not in (2, 3) or 0 in shape:
        raise UnfitError(f"an image is an array (h, w), (c, h, w) or (h, w, c), got the shape {shape}")
    if np.prod(shape) > max_pixels * max(channels, 3):
        raise UnfitError(f"an array of shape {shape} exceeds the limit of {max_pixels} pixels")
    file.seek(0)
    array = np.load(file, allow_pickle=False)
    if array.ndim == 2:
        return to_tensor(array[None])
    first, last = (shape[axis] in {1, channels} for axis in (0, 2))
    if first == last:
        which = "its first or its last axis may be channels" if first else f"{channels} channels are wanted"
        raise UnfitError(f"an array of shape {shape}: {which}")
    return to_tensor(array if first else np.moveaxis(array, 2, 0))


def wide_values(
    opened: Image.Image, file: BinaryIO, channels: int, max_pixels: int, *, exact: bool
) -> Shaped[Tensor, "c h w"] | None:
    """Return the values of an image that has more than 8 bits, or channels that Pillow would drop.

    Args:
        opened: The image, whose pixels are not read yet.
        file: Its file.
        channels: Channels that are asked for.
        max_pixels: The largest height times width that is decoded.
        exact: Whether 16 bits of colour are wanted in full, where Pillow reads 8 of them.

    Returns:
        The values; None for an image of 8 bits in grey, a palette or colour.

    Raises:
        UnfitError: It has several pages that are no channels.
    """
    if opened.format == "TIFF":
        pages = _pages(opened)
        samples = int(opened.tag_v2.get(SAMPLES, 1))  # type: ignore[attr-defined]
        bits = max(opened.tag_v2.get(BITS, (1,)))  # type: ignore[attr-defined]
        extra = opened.tag_v2.get(EXTRA, ())  # type: ignore[attr-defined]
        if pages > 1 and (samples > 1 or pages != channels):
            raise UnfitError(
                f"it has {pages} pages, an image has one (data.channels {pages} takes them as channels)"
            )
        unnamed = samples > 3 and not set(extra) & {*ALPHA} and opened.mode != "CMYK"
        if (
            pages > 1
            or unnamed
            or (samples > 1 and bits > 8 and (exact or samples == 2 or channels not in (1, 3)))
        ):
            return read_tiff(file, max_pixels)
    if (
        opened.format == "PNG"
        and exact
        and opened.mode in ("RGB", "RGBA")
        and "16B" in str(getattr(opened, "tile", ""))
    ):
        from torchvision.io import ImageReadMode, decode_png

        file.seek(0)
        content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
        with warnings.catch_warnings():
            # torchvision 0.29 says that this will move to another package, which is nothing to a reader
            warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)
            return decode_png(content, ImageReadMode.RGB, apply_exif_orientation=True).to(torch.int32)
    if opened.mode.startswith("I;16") or opened.mode in ("I", "F"):
        # Pillow opens 16 bits as 32 in PNG and PPM, which may hold floats, too
        unsigned = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
        opened.load()
        array = np.array(ImageOps.exif_transpose(opened))
        return to_tensor((array.astype(np.uint16) if unsigned else array)[None])
    return None


def read_tiff(file: BinaryIO, max_pixels: int) -> Shaped[Tensor, "c h w"]:
    """Read a TIFF file of any number of channels or of pages, which are channels then.

    Raises:
        ImportError: tifffile is not installed.
        UnfitError: It has other axes, an orientation of its own, or too many pixels.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(f"TIFF files of such channels need tifffile: {install_command('tiff')}") from error
    file.seek(0)
    with tifffile.TiffFile(file) as opened:
        series = opened.series[0]
        page = opened.pages[0]
        if page.imagewidth * page.imagelength > max_pixels:
            raise UnfitError(
                f"{page.imagewidth} x {page.imagelength} pixels exceed the limit of {max_pixels}"
            )
        if ORIENTATION in page.tags and page.tags[ORIENTATION].value != 1:
            raise UnfitError("a TIFF file of such channels must be stored upright (tag Orientation 1)")
        array = series.asarray()
        axes = series.axes
    if array.ndim == 2:
        return to_tensor(array[None])
    if array.ndim != 3:
        raise UnfitError(
            f"an image has height, width and channels, got the axes {axes} of shape {array.shape}"
        )
    return to_tensor(np.moveaxis(array, 2, 0) if axes.endswith("S") else array)


def to_tensor(array: NDArray[Any]) -> Shaped[Tensor, "c h w"]:
    """Return an array as uint8, as int32 for 16 bits without sign, or as float32.

    Raises:
        UnfitError: Its values are no real numbers.
    """
    if array.dtype.kind not in "uif":
        raise UnfitError(f"its values must be real numbers, got {array.dtype}")
    kind = {np.dtype(np.uint8): np.uint8, np.dtype(np.uint16): np.int32}
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind.get(native, np.float32), order="C"))


def _pages(opened: Any) -> int:
    """Return the number of pages of a TIFF file, without previews of the first one."""
    count = 1
    for number in range(1, getattr(opened, "n_frames", 1)):
        opened.seek(number)
        count += not opened.tag_v2.get(SUBFILE, 0) & 1
    opened.seek(0)
    return count
