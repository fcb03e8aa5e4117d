"""Short films made by the tests: each frame says its number by its brightness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

av = pytest.importorskip("av", reason="videos need PyAV: pip install av")

DARKEST, STEP = 20, 5


def numbered(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray[Any, Any]]:
    """Frames of one brightness each, which tells their number; 45 at most."""
    return [np.full((*size, 3), DARKEST + STEP * i, np.uint8) for i in range(count)]


def numbers(clip: Tensor) -> list[int]:
    """Numbers of the frames of a clip (t c h w)."""
    return ((clip.float().mean((1, 2, 3)) - DARKEST) / STEP).round().long().tolist()


def write_film(
    path: Path,
    frames: Sequence[np.ndarray[Any, Any]],
    *,
    codec: str = "libx264",
    gop: int = 10,
    rate: int = 10,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Encode frames (h w 3); a frame may have another size than the one before only with mjpeg in mkv."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = None
        for number, frame in enumerate(frames):
            height, width = frame.shape[:2]
            if stream is None or (encoder.height, encoder.width) != (height, width):
                fresh = stream is None
                if fresh:
                    stream = file.add_stream(codec, rate=rate)
                encoder = stream if fresh else av.CodecContext.create(codec, "w")
                encoder.width, encoder.height = width, height
                encoder.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                if fresh:
                    encoder.gop_size = gop
                    encoder.options = options or {}
                else:
                    encoder.time_base = stream.codec_context.time_base
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, 1 / stream.codec_context.framerate
            for packet in encoder.encode(picture):
                packet.stream = stream
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def shorten(path: Path, part: float = 0.6) -> Path:
    """Leave out the end of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def drifting(label: int, count: int = 12, side: int = 16, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """A bright square that drifts to the left or to the right over noise, beginning anywhere."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 60, (side, side, 3), generator=generator, dtype=torch.uint8).numpy()
    start, row = torch.randint(side, (2,), generator=generator).tolist()
    frames = []
    for i in range(count):
        frame = noise.copy()
        columns = [(start + (i if label else -i) + k) % side for k in range(4)]
        rows = [(row + k) % side for k in range(4)]
        frame[np.ix_(rows, columns)] = 230
        frames.append(frame)
    return frames
