"""Videos and volumes as data: folders, clips in batches, randomness, faults."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.films import numbered, numbers, shorten, write_film
from vit_pytorch.data import (
    Augmentation,
    BadImageError,
    ImageLoader,
    Preprocessing,
    VideoConfig,
    VideoFiles,
    VolumeFiles,
    open_data,
    train_transform,
)
from vit_pytorch.data.seeding import generator_for, seeded

nibabel = pytest.importorskip("nibabel", reason="volumes need nibabel: pip install nibabel")

# values 0 to 255 again
SEEN = {"mean": (0.0,), "std": (1 / 255,)}
PREP = Preprocessing(image_size=(16, 16), frames=4, video=VideoConfig(stride=2), **SEEN)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six films of 20 frames that say their numbers."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(12):
        write_film(folder / ("cat", "dog")[i % 2] / f"{i:02}.mp4", numbered(20, (24, 32)))
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for i in range(8):
        path = tmp_path / "scans" / ("ill", "well")[i % 2] / f"{i}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).normal(size=(12, 10, 8)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return tmp_path / "scans"


def loader(images: VideoFiles, augmentation: Augmentation | None = None, **options: Any) -> ImageLoader:
    prep = options.pop("prep", PREP)
    return ImageLoader(images, prep, augmentation, batch_size=3, num_classes=2, seed=5, **options)


def clips(batches: ImageLoader, epoch: int = 0) -> Tensor:
    batches.sampler.set_epoch(epoch)
    return torch.cat([images for images, _ in batches])


def test_a_folder_of_videos(films: Path) -> None:
    splits = open_data(f"video:{films}", val_fraction=0.2, test_fraction=0.3)
    assert splits.classes == ("cat", "dog")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [6, 2, 4]
    assert isinstance(splits.test, VideoFiles)
    clip, label = splits.train[0]
    assert (clip.shape, label) == ((20, 3, 24, 32), 0)
    assert numbers(clip) == list(range(20))


def test_splits_of_their_own_have_the_classes_of_training(films: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(films)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "a.mp4").symlink_to(films / "cat" / "00.mp4")
    with pytest.warns(UserWarning, match="val has no videos of 'dog'"):
        assert open_data(f"video:{tmp_path}").val.labels.tolist() == [0]
    (tmp_path / "val" / "fish").mkdir()
    with pytest.raises(ValueError, match="has besides 'fish'"):
        open_data(f"video:{tmp_path}")


def test_a_class_without_videos(films: Path, tmp_path: Path) -> None:
    (tmp_path / "cat").symlink_to(films / "cat")
    (tmp_path / "fish").mkdir()
    (tmp_path / "fish" / "photo.png").write_bytes(b"")
    with pytest.raises(ValueError, match="class 'fish' has no videos"):
        open_data(f"video:{tmp_path}")


def test_evaluation_sees_the_middle_of_each_video(films: Path) -> None:
    images, labels = next(iter(loader(open_data(f"video:{films}").train)))
    assert images.shape == (2, 3, 4, 16, 16)
    assert images.dtype == torch.float32
    assert all(numbers(clip.transpose(0, 1)) == [6, 8, 10, 12] for clip in images)
    assert labels.tolist() == [0, 0]


def test_grey_videos(films: Path) -> None:
    prep = Preprocessing(image_size=(16, 16), channels=1, frames=2, **SEEN)
    images, _ = next(iter(loader(open_data(f"video:{films}").train, prep=prep)))
    assert images.shape == (2, 1, 2, 16, 16)
    assert numbers(images[0].transpose(0, 1)) == [9, 10]


def test_training_sees_other_frames_each_epoch_whatever_the_workers(films: Path) -> None:
    train = open_data(f"video:{films}").train
    augmentation = Augmentation(crop_scale=(0.5, 1.0), flip=0.5, color_jitter=0.2)
    plain = loader(train, augmentation)
    first, second = clips(plain), clips(plain, epoch=1)
    assert not torch.equal(first, second)
    with_workers = loader(train, augmentation, workers=2)
    assert torch.equal(clips(with_workers), first)
    assert torch.equal(clips(with_workers, epoch=1), second)


def test_training_begins_in_different_places(films: Path) -> None:
    batches = loader(open_data(f"video:{films}").train, Augmentation())
    starts = set()
    for epoch in range(6):
        for clip in clips(batches, epoch):
            found = numbers(clip.transpose(0, 1))
            assert found == list(range(found[0], found[0] + 8, 2))
            starts.add(found[0])
    assert len(starts) > 6
    assert starts <= set(range(14))


def test_all_frames_of_a_clip_are_augmented_alike() -> None:
    still = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8, generator=generator_for(0))
    augmentation = Augmentation(
        crop_scale=(0.3, 1.0), flip=0.5, degrees=20, rand_augment=1, color_jitter=0.4, random_erasing=0.5
    )
    transform = train_transform(PREP, augmentation)
    seen = set()
    for seed in range(20):
        with seeded(seed):
            clip = transform(still.expand(4, -1, -1, -1))
        assert clip.shape == (3, 4, 16, 16)
        assert (clip == clip[:, :1]).all()
        with seeded(seed):
            alone = train_transform(replace(PREP, frames=None), augmentation)(still[0])
        torch.testing.assert_close(clip[:, 0], alone)
        seen.add(float(clip.sum()))
    assert len(seen) == 20


@pytest.mark.parametrize("setting", ["mixup", "cutmix"])
def test_clips_are_mixed(setting: str, films: Path) -> None:
    train = open_data(f"video:{films}").train
    images, labels = next(iter(loader(train, Augmentation(**{setting: 1.0}))))
    assert type(images) is Tensor
    assert images.shape == (3, 3, 4, 16, 16)
    torch.testing.assert_close(labels.sum(1), torch.ones(3))
    plain = clips(loader(train, Augmentation()))
    assert not torch.equal(images, plain[:3])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_videos_are_skipped_and_named_or_stop(
    workers: int, films: Path, tmp_path: Path, quick_shutdown: None
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for path in (films / label).iterdir():
            (tmp_path / label / path.name).write_bytes(path.read_bytes())
    cut, empty = tmp_path / "cat" / "04.mp4", tmp_path / "dog" / "05.mp4"
    shorten(cut)
    empty.write_bytes(b"")
    data = VideoFiles(sorted(tmp_path.rglob("*.mp4")), torch.arange(12) % 2)
    skipping = loader(data, on_bad="skip", workers=workers)
    with pytest.warns(UserWarning, match=r"skipped bad video .*0[45]\.mp4"):
        assert len(clips(skipping)) == 10
    assert skipping.bad.keys() == {str(cut), str(empty)}
    assert skipping.bad[str(empty)] == "the file is empty"
    with pytest.raises(BadImageError, match=r"bad video .*04\.mp4: "):
        clips(loader(data, workers=workers))


def test_a_model_of_images_takes_no_videos(films: Path) -> None:
    with pytest.raises(ValueError, match="the model takes 16 x 16, which videos do not have"):
        loader(open_data(f"video:{films}").train, prep=Preprocessing(image_size=(16, 16)))


def test_a_folder_of_volumes(scans: Path) -> None:
    splits = open_data(f"nifti:{scans}", test_fraction=0)
    assert isinstance(splits.train, VolumeFiles)
    assert (splits.classes, splits.train.channels) == (("ill", "well"), 1)
    assert splits.train[0][0].shape == (8, 1, 10, 12)
    prep = Preprocessing(image_size=(16, 16), channels=1, frames=4)
    images, _ = next(iter(loader(splits.train, prep=prep)))
    assert images.shape == (3, 1, 4, 16, 16)
    assert -1 <= images.min() < -0.5 < 0.5 < images.max() <= 1
    augmented = clips(loader(splits.train, Augmentation(crop_scale=(0.5, 1.0), flip=0.5), prep=prep))
    assert augmented.shape == (6, 1, 4, 16, 16)


def test_all_slices_are_flipped_alike(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 8), np.float32)
    values[:4] = 1
    for label in ("ill", "well"):
        for i in range(6):
            path = tmp_path / label / f"{i}.nii"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1])), path)
    prep = Preprocessing(image_size=(8, 8), channels=1, frames=8, mean=(0.0,), std=(1.0,))
    found = clips(loader(open_data(f"nifti:{tmp_path}").train, Augmentation(flip=0.5), prep=prep))
    sides = found[..., :4].mean((1, 3, 4))
    assert ((sides == 1).all(1) | (sides == 0).all(1)).all()
    assert set(sides[:, 0].tolist()) == {0, 1}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, films: Path, scans: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    find: list[tuple[str, Callable[[], Any]]] = [
        ("video", lambda: open_data(f"video:{films}").train[0]),
        ("volumes", lambda: open_data(f"nifti:{scans}").train[0]),
    ]
    for extra, read in find:
        with pytest.raises(ImportError, match=rf"pip install 'proven-vit\[{extra}\]'"):
            read()
