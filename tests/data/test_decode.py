import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit_pytorch.data import BadImageError, decode, decode_image


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_rgb_and_grey_keep_their_values() -> None:
    rgb = noise(5, 7, 3)
    assert torch.equal(decode_image(encoded(Image.fromarray(rgb))), torch.from_numpy(rgb).permute(2, 0, 1))
    grey = noise(5, 7)
    assert torch.equal(
        decode_image(encoded(Image.fromarray(grey)), channels=1), torch.from_numpy(grey).unsqueeze(0)
    )
    assert torch.equal(decode_image(encoded(Image.fromarray(grey))), torch.from_numpy(grey).expand(3, 5, 7))


@pytest.mark.parametrize(("file_format", "channels"), [("PNG", 1), ("PNG", 3), ("TIFF", 1), ("PPM", 3)])
def test_16_bit_grey_is_scaled_and_not_clipped(file_format: str, channels: int) -> None:
    wide = np.array([[0, 257, 1000, 32896, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(wide), file_format), channels=channels)
    assert image.shape == (channels, 1, 5)
    assert image[0, 0].tolist() == [0, 1, 4, 128, 255]


@pytest.mark.parametrize("file_format", ["TIFF", "PPM"])
def test_values_of_32_bits_are_refused_since_their_range_is_unknown(file_format: str) -> None:
    content = encoded(Image.fromarray(np.full((2, 2), 0.5, np.float32)), file_format)
    with pytest.raises(BadImageError, match=r"scan\.tif.*32-bit"):
        decode_image(content, name="scan.tif")
    assert decode_image(content, window=(0, 1), channels=1).unique().tolist() == [128]


def test_palette() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    assert decode_image(encoded(image))[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_on_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (255, 255, 255, 255)])
    if mode == "P":
        palette = Image.new("P", (3, 1))
        palette.putpalette([1, 2, 3, 0, 0, 0, 255, 255, 255])
        palette.putdata([0, 1, 2])
        data = encoded(palette, transparency=0)
    else:
        data = encoded(image.convert(mode))
    assert decode_image(data)[:, 0].tolist() == [[255, 0, 255]] * 3


def test_half_transparent_black_is_grey() -> None:
    image = decode_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128))))
    assert image.flatten().tolist() == [127] * 3


def test_cmyk() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = decode_image(data).float().mean((1, 2)).tolist()
    assert red > 245
    assert green < 10
    assert blue < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = torch.arange(6, dtype=torch.uint8).reshape(2, 3) * 40
    stored = {
        1: upright,
        2: upright.flip(1),
        3: upright.flip(0, 1),
        4: upright.flip(0),
        5: upright.T,
        6: upright.rot90(1),
        7: upright.T.flip(0, 1),
        8: upright.rot90(-1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored.contiguous().numpy()), exif=exif)
    assert torch.equal(decode_image(data, channels=1)[0], upright)


def test_truncated_jpeg_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImageError, match=r"cut\.jpg.*truncated"):
        decode_image(path)


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(BadImageError, match=r"empty\.png: the file is empty"):
        decode_image(path)


def test_html_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(BadImageError, match=r"page\.jpg: not an image.*DOCTYPE"):
        decode_image(path)


def test_corrupt_png_stream() -> None:
    data = bytearray(encoded(Image.fromarray(noise(32, 32, 3))))
    data[60:80] = bytes(20)
    with pytest.raises(BadImageError, match="broken"):
        decode_image(bytes(data), name="broken")


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    with pytest.raises(
        BadImageError, match=rf"bomb\.png.*{side * side}|bomb\.png: {side} x {side} pixels exceed"
    ):
        decode_image(path)


def test_limit_of_pixels_is_inclusive() -> None:
    data = encoded(Image.fromarray(noise(4, 5)))
    assert decode_image(data, max_pixels=20).shape == (3, 4, 5)
    with pytest.raises(BadImageError, match="5 x 4 pixels exceed the limit of 19"):
        decode_image(data, max_pixels=19)


def test_channels_that_files_do_not_have() -> None:
    with pytest.raises(ValueError, match="channels=0"):
        decode_image(b"", channels=0)


def test_missing_file_is_not_a_bad_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "none.png")


@pytest.mark.parametrize("quality", [30, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_decoders_of_jpeg_give_the_same(
    quality: int, subsampling: int, progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    files = [
        encoded(Image.fromarray(noise(*size, 3)), "JPEG", **options) for size in ((1, 1), (17, 33), (64, 48))
    ]
    assert decode.simplejpeg is not None
    fast = [decode_image(file) for file in files]
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert all(torch.equal(image, decode_image(file)) for image, file in zip(fast, files, strict=True))


def test_what_the_fast_decoder_refuses_is_decoded_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that Pillow decodes, with a warning of the library that nobody sees."""
    whole = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    damaged = bytearray(whole)
    damaged[-400:-300] = bytes(100)
    with pytest.raises(ValueError, match="orrupt"):
        decode.simplejpeg.decode_jpeg(bytes(damaged), colorspace="RGB", strict=True)
    image = decode_image(bytes(damaged))
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert torch.equal(image, decode_image(bytes(damaged)))
