import pytest
import torch

from vit_pytorch.data.clips import VideoConfig, choose_frames, sliding_clips


def draws(count: int, frames: int, config: VideoConfig, seeds: int = 200) -> list[list[int]]:
    return [
        choose_frames(count, frames, config, torch.Generator().manual_seed(seed)) for seed in range(seeds)
    ]


def test_evaluation_takes_the_middle() -> None:
    assert choose_frames(11, 3, VideoConfig()) == [4, 5, 6]
    assert choose_frames(11, 3, VideoConfig(stride=4)) == [1, 5, 9]


def test_training_begins_anywhere_and_nowhere_else() -> None:
    found = draws(11, 3, VideoConfig(stride=3))
    assert {clip[0] for clip in found} == {0, 1, 2, 3, 4}
    assert all(clip == [clip[0], clip[0] + 3, clip[0] + 6] for clip in found)
    assert found == draws(11, 3, VideoConfig(stride=3))


def test_uniform_sampling_covers_the_video() -> None:
    config = VideoConfig(sampling="uniform")
    assert choose_frames(12, 4, config) == [1, 4, 7, 10]
    found = draws(12, 4, config)
    for place in range(4):
        assert {clip[place] for clip in found} == {3 * place, 3 * place + 1, 3 * place + 2}


@pytest.mark.parametrize("train", [False, True])
def test_short_videos_repeat_frames(train: bool) -> None:
    generator = torch.Generator().manual_seed(0) if train else None
    assert choose_frames(3, 5, VideoConfig(stride=2), generator) == [0, 2, 2, 2, 2]
    assert choose_frames(1, 3, VideoConfig(), generator) == [0, 0, 0]
    uniform = choose_frames(2, 4, VideoConfig(sampling="uniform"), generator)
    assert uniform == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("count", "step", "spans"),
    [
        (8, None, [(0, 4), (4, 8)]),
        (10, None, [(0, 4), (4, 8), (6, 10)]),
        (8, 2, [(0, 4), (2, 6), (4, 8)]),
        (4, None, [(0, 4)]),
        (3, 1, [(0, 3)]),
    ],
)
def test_sliding_clips_cover_the_video(count: int, step: int | None, spans: list[tuple[int, int]]) -> None:
    found = list(sliding_clips(count, 4, VideoConfig(), step))
    assert [(window.start, window.end) for window in found] == spans
    assert all(window.frames[0] == window.start and len(window.frames) == 4 for window in found)


def test_one_uniform_clip_is_the_video() -> None:
    ((start, end, frames),) = sliding_clips(9, 3, VideoConfig(sampling="uniform"))
    assert (start, end, frames) == (0, 9, [1, 4, 7])


def test_stride_is_checked() -> None:
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        VideoConfig(stride=0)
