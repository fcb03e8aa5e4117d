"""Which frames of a video make a clip."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from vit_pytorch.preprocessing import VideoConfig


class Window(NamedTuple):
    """A part of a video that one clip stands for.

    Args:
        start: Its first frame.
        end: The first frame after it.
        frames: The frames of the clip.
    """

    start: int
    end: int
    frames: list[int]


def choose_frames(
    count: int, frames: int, config: VideoConfig, generator: torch.Generator | None = None
) -> list[int]:
    """Choose the frames of one clip.

    Where a video is shorter than the clip, its last frame is repeated (``random``), or each of its frames is
    (``uniform``).

    Args:
        count: Frames of the video, at least 1.
        frames: Frames of the clip.
        config: How they are chosen.
        generator: Draws a clip for training; None for the clip of evaluation.

    Returns:
        Numbers of frames, from 0, in ascending order.
    """
    if config.sampling == "uniform":
        within = torch.full((frames,), 0.5) if generator is None else torch.rand(frames, generator=generator)
        chosen = ((torch.arange(frames) + within.double()) * count / frames).long()
        return chosen.clamp(max=count - 1).tolist()
    room = max(0, count - config.span(frames))
    start = room // 2 if generator is None else int(torch.randint(room + 1, (), generator=generator))
    return _clip_from(start, count, frames, config.stride)


def sliding_clips(count: int, frames: int, config: VideoConfig, step: int | None = None) -> Iterator[Window]:
    """Yield clips that cover a whole video, from its start to its end.

    Args:
        count: Frames of the video, at least 1.
        frames: Frames of a clip.
        config: How frames are chosen; with ``uniform`` sampling one clip covers the video.
        step: Frames of the video from the start of one clip to that of the next; by default a clip begins
            where the one before ended. The last clip begins earlier where it would not fit.
    """
    if config.sampling == "uniform":
        yield Window(0, count, choose_frames(count, frames, config))
        return
    span = config.span(frames)
    last = max(0, count - span)
    for start in (*range(0, last, step or span), last):
        yield Window(start, min(start + span, count), _clip_from(start, count, frames, config.stride))


def _clip_from(start: int, count: int, frames: int, stride: int) -> list[int]:
    """The frames ``start``, ``start + stride`` and so on, the last of the video where it has no more."""
    return [min(start + i * stride, count - 1) for i in range(frames)]
