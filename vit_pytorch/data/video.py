"""Reading frames of video files by their number, decoding no more than it takes."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vit_pytorch.data.decode import MAX_PIXELS, BadImageError, open_regular
from vit_pytorch.extras import install_command

EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv", ".ogv"}
)
# A file whose data end so much before the time that its header gives is not whole.
SLACK_SECONDS, SLACK_PART = 0.25, 0.1
# Formats that hold their data themselves; others, such as playlists, can name files and addresses.
FORMATS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,m4v,mjpeg,gif"

# Formats whose header says how long the data last; for others the length is an estimate.
WITH_LENGTH = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf")


@dataclass(frozen=True)
class Times:
    """When the frames of a video are shown.

    Args:
        count: Number of frames.
        shown: Time of each in units of the stream, ascending; empty where the file does not say.
        number: The number of each by that time.
        keys: For those from which decoding can begin, when they are shown and when they are decoded.
    """

    count: int
    shown: list[int]
    number: dict[int, int]
    keys: list[tuple[int, int]]


class VideoReader:
    """Reads frames of one video file by their number in the order in which they are shown.

    The packets of the file are listed once, which decodes nothing. Frames are then found by seeking to the
    last key frame before them; frames that follow each other closely, also in later calls, are decoded on
    from where the reader is. A file without times of its frames is decoded from its start.

    Args:
        path: The file.

    Attributes:
        count: Number of frames.

    Raises:
        BadImageError: The file is empty, not a video, has no frames, is truncated, or its frames are larger
            than ``MAX_PIXELS``.
        OSError: The file cannot be read at all.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path, "video"):
            pass
        self._container: Any = None
        self._decoded: Iterator[tuple[int, Any]] = iter(())
        self._place = -1
        self._clock = 0
        self._astray = False
        with self._faults_named():
            self._times = _list_packets(path)
        self.count = self._times.count

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._decoded = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, numbers: Sequence[int]) -> UInt8[Tensor, "t 3 h w"]:
        """Return frames in RGB, upright; all in the size of the first of them.

        Args:
            numbers: In ascending order, from 0; a frame may be asked for repeatedly.

        Raises:
            BadImageError: A frame cannot be decoded.
        """
        if not numbers or sorted(numbers) != list(numbers) or not 0 <= numbers[0] <= numbers[-1] < self.count:
            raise ValueError(f"frames are 0 to {self.count - 1}, in ascending order, got {list(numbers)}")
        found: dict[int, Tensor] = {}
        with self._faults_named():
            for number in dict.fromkeys(numbers):
                found[number] = _pixels(self._find(number))
        size = list(found[numbers[0]].shape[-2:])
        return torch.stack(
            [
                frame if list(frame.shape[-2:]) == size else F.resize(frame, size, antialias=True)
                for frame in map(found.__getitem__, numbers)
            ]
        )

    def seconds(self, number: int) -> float:
        """Say when a frame is shown, in seconds from the first; the end of the video for ``count``.

        By the frame rate, where the file does not give the times of its frames.
        """
        with self._faults_named():
            stream = _stream(self._open())
        times = self._times.shown
        if not times:
            return number / float(stream.average_rate)
        past = 0.0
        if number >= self.count > 1:
            # the last frame stays as long as the others on average
            past = (times[-1] - times[0]) / (self.count - 1)
        return (times[min(number, self.count - 1)] - times[0] + past) * float(stream.time_base)

    def _find(self, number: int) -> Any:
        """Decode one frame: on from the last one, or from a key frame where one lies between."""
        if self._times.shown and not self._astray:
            frame = self._seek(number)
            if frame is not None:
                return frame
            self._astray, self._place = True, -1
        if self._place < 0 or self._place >= number:
            self.close()
            container = self._open()
            number_of = self._times.number
            self._decoded = (
                (number_of.get(frame.pts, place), frame)
                for place, frame in enumerate(container.decode(_stream(container)))
            )
        frame = self._advance(number)
        if frame is None:
            reason = f"frame {number} of {self.count} cannot be decoded"
            raise BadImageError(str(self.path), reason, "video")
        return frame

    def _seek(self, number: int) -> Any:
        """Decode one frame by its time; None where that leads elsewhere."""
        times = self._times
        before = bisect_right(times.keys, (times.shown[number], sys.maxsize))
        if not before:
            return None
        if 0 <= self._place < number and times.keys[before - 1][0] <= times.shown[self._place]:
            return self._advance(number)
        # formats differ in which of the two times of a key frame finds it
        for clock in (self._clock, 1 - self._clock):
            container = self._open()
            stream = _stream(container)
            container.seek(times.keys[before - 1][clock], stream=stream)
            self._decoded = (
                (times.number[frame.pts], frame)
                for frame in container.decode(stream)
                if frame.pts in times.number
            )
            frame = self._advance(number)
            if frame is not None:
                self._clock = clock
                return frame
        return None

    def _advance(self, number: int) -> Any:
        """Decode on to a frame; None where it does not come."""
        for place, frame in self._decoded:
            self._place = place
            if place < number:
                continue
            if place == number and frame.is_corrupt:
                reason = f"frame {number} of {self.count} is damaged"
                raise BadImageError(str(self.path), reason, "video")
            return frame if place == number else None
        return None

    def _open(self) -> Any:
        if self._container is None:
            self._container = _open(self.path)
            # loading has processes of its own
            _stream(self._container).codec_context.thread_count = 1
        return self._container

    @contextmanager
    def _faults_named(self) -> Iterator[None]:
        try:
            yield
        except _av().FFmpegError as error:
            if isinstance(error, OSError) and not isinstance(error, ValueError):
                raise
            reason = f"{type(error).__name__}: {error.strerror}"
            raise BadImageError(str(self.path), reason, "video") from error
        except (BadImageError, OSError, MemoryError):
            raise
        except Exception as error:  # PyAV raises other types on broken bytes, and has no list of them
            reason = f"{type(error).__name__}: {error}"
            raise BadImageError(str(self.path), reason, "video") from error


def _list_packets(path: Path) -> Times:
    """List the frames of a file without decoding them, and make sure that it is whole."""
    shown: list[int | None] = []
    keys: list[tuple[int, int]] = []
    reached, damaged, begun = 0.0, 0, False
    with _open(path) as container:
        stream = _stream(container)
        if stream is None:
            raise BadImageError(str(path), "it has no video stream", "video")
        size = stream.codec_context.width, stream.codec_context.height
        if size[0] * size[1] > MAX_PIXELS:
            reason = f"{size[0]} x {size[1]} pixels exceed the limit of {MAX_PIXELS}"
            raise BadImageError(str(path), reason, "video")
        start = (container.start_time or 0) / 1_000_000
        for packet in container.demux():
            if not packet.size:
                continue
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                end = (time + (packet.duration or 0)) * packet.time_base
                reached = max(reached, float(end) - start)
            if packet.stream.index != stream.index:
                continue
            damaged += packet.is_corrupt
            # a recording may begin between two key frames; what comes before the first shows nothing
            begun = begun or packet.is_keyframe
            if begun:
                shown.append(packet.pts)
                if packet.is_keyframe and packet.pts is not None:
                    keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        promised = (container.duration or 0) / 1_000_000 if container.format.name in WITH_LENGTH else 0.0
        broadcast = container.format.name == "mpegts"
    if damaged and not broadcast:
        raise BadImageError(str(path), f"it is truncated: {damaged} frames are not whole", "video")
    if reached < promised * (1 - SLACK_PART) - SLACK_SECONDS:
        reason = f"it is truncated: it should last {promised:.2f} s, and ends after {reached:.2f} s"
        raise BadImageError(str(path), reason, "video")
    if not shown:
        raise BadImageError(str(path), "it has no frames", "video")
    known = sorted({time for time in shown if time is not None})
    if len(known) < len(shown):
        return Times(len(shown), [], {}, [])
    keys.sort()
    known = [time for time in known if time >= keys[0][0]]
    return Times(len(known), known, {time: i for i, time in enumerate(known)}, keys)


def _open(path: Path) -> Any:
    return _av().open(str(path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})


def _stream(container: Any) -> Any:
    """The film itself, and not a still that is its cover; None where there is no film."""
    return container.streams.best("video")


def _pixels(frame: Any) -> UInt8[Tensor, "3 h w"]:
    pixels: np.ndarray[Any, Any] = frame.to_ndarray(format="rgb24")
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    turns = round(frame.rotation / 90) % 4
    return image.rot90(turns, (1, 2)) if turns else image


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"videos need PyAV: {install_command('video')}") from error
    return av
