import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vit_pytorch.data import (
    ArrayImages,
    Augmentation,
    BadImageError,
    FileImages,
    ImageDataset,
    ImageLoader,
    Preprocessing,
    Splits,
    open_data,
)

Batches = list[tuple[Tensor, Tensor]]
GREY = Preprocessing(image_size=(6, 6), channels=1)
MOVING = Augmentation(shift=1, flip=0.5, degrees=10, random_erasing=0.5, mixup=0.3, cutmix=1.0)


def loader(images: ImageDataset, augmentation: Augmentation | None = MOVING, **options: Any) -> ImageLoader:
    return ImageLoader(
        images, options.pop("prep", GREY), augmentation, **{"batch_size": 8, "num_classes": 2, **options}
    )


def epochs(loader: ImageLoader, count: int = 2) -> Batches:
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def assert_equal(left: Batches, right: Batches) -> None:
    assert len(left) == len(right)
    for (images, labels), (other_images, other_labels) in zip(left, right, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


@pytest.fixture
def files(tmp_path: Path, make_folder: Callable[..., Path]) -> FileImages:
    splits = open_data(str(make_folder(tmp_path, cat=24, dog=24)))
    assert isinstance(splits.train, FileImages)
    return splits.train


@pytest.fixture(params=["memory", "recoloured", "files"])
def source(
    request: pytest.FixtureRequest, splits: Splits, files: FileImages
) -> tuple[ImageDataset, Augmentation]:
    """Images that are augmented together, images in memory that are augmented singly, and files."""
    return {
        "memory": (splits.train, MOVING),
        "recoloured": (splits.train, replace(MOVING, rand_augment=2)),
        "files": (files, replace(MOVING, color_jitter=0.4)),
    }[request.param]


def test_workers_change_nothing(source: tuple[ImageDataset, Augmentation]) -> None:
    assert_equal(epochs(loader(*source)), epochs(loader(*source, workers=2)))


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_within_an_epoch(source: tuple[ImageDataset, Augmentation], workers: int) -> None:
    whole = epochs(loader(*source))
    per_epoch = len(whole) // 2
    interrupted = loader(*source, workers=workers)
    interrupted.sampler.set_epoch(1)
    iterator = iter(interrupted)
    seen = [next(iterator) for _ in range(2)]
    state = interrupted.state_dict()
    resumed = loader(*source, workers=workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.sampler.set_epoch(1)
    assert_equal(seen + list(resumed), whole[per_epoch:])


def test_epochs_and_seeds_differ(splits: Splits) -> None:
    first, second = (
        torch.cat([images for images, _ in epochs(loader(splits.train, seed=seed))]) for seed in (0, 1)
    )
    assert not torch.equal(*first.chunk(2))
    assert not torch.equal(first, second)


def test_augmentation_depends_on_the_image_and_not_on_its_batch(
    source: tuple[ImageDataset, Augmentation],
) -> None:
    images, augmentation = source[0], replace(source[1], mixup=0.0, cutmix=0.0)
    small, large = (
        torch.cat([batch for batch, _ in epochs(loader(images, augmentation, batch_size=size), 1)])
        for size in (2, 8)
    )
    count = min(len(small), len(large))
    assert torch.equal(small[:count], large[:count])


def test_ranks_together_load_what_one_process_loads(source: tuple[ImageDataset, Augmentation]) -> None:
    images, augmentation = source[0], replace(source[1], mixup=0.0, cutmix=0.0)
    alone = epochs(loader(images, augmentation, batch_size=8))
    ranks = [
        epochs(loader(images, augmentation, batch_size=4, rank=rank, world_size=2), 2) for rank in range(2)
    ]
    joined = [
        (torch.cat([left[0], right[0]]), torch.cat([left[1], right[1]]))
        for left, right in zip(*ranks, strict=True)
    ]
    assert_equal(joined, alone)


def test_evaluation_is_in_order_and_complete(splits: Splits) -> None:
    assert isinstance(splits.val, ArrayImages)
    images, labels = (torch.cat(parts) for parts in zip(*loader(splits.val, None, batch_size=2), strict=True))
    assert torch.equal(labels, splits.val.labels)
    assert torch.allclose(images, splits.val.images / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_last_in_memory(source: Any, channels: int, workers: int) -> None:
    prep = replace(GREY, image_size=(8, 6), channels=channels)
    for augmentation in (None, source[1], replace(source[1], mixup=0.0, cutmix=0.0)):
        images, _ = next(iter(loader(source[0], augmentation, prep=prep, workers=workers)))
        assert images.stride() == (48 * channels, 1, 6 * channels, channels)


def test_grey_images_for_a_model_of_colours(splits: Splits) -> None:
    images, _ = next(iter(loader(splits.val, None, prep=Preprocessing(image_size=(9, 9), channels=3))))
    assert images.shape == (5, 3, 9, 9)
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_leaves_the_global_generator_alone(
    source: tuple[ImageDataset, Augmentation], workers: int
) -> None:
    state = torch.get_rng_state()
    epochs(loader(*source, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_repeating_and_breaking_off_begin_anew(splits: Splits) -> None:
    images = loader(splits.train)
    whole = list(images)
    next(iter(images))
    assert_equal(list(images), whole)


def test_state_of_another_epoch_is_not_used(splits: Splits) -> None:
    images = loader(splits.train)
    whole = epochs(images)
    images.load_state_dict({**images.state_dict(), "epoch": 0, "batch": 5})
    images.sampler.set_epoch(1)
    assert_equal(list(images), whole[5:])


def test_state_within_an_epoch_of_other_batches(splits: Splits) -> None:
    interrupted = loader(splits.train)
    next(iter(interrupted))
    other = loader(splits.train, batch_size=4, seed=7)
    message = "after batch 1 of 5 in epoch 0.*global batch size was 8 and is 4, seed was 0 and is 7"
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(interrupted.state_dict())
    list(interrupted)
    other.load_state_dict(interrupted.state_dict())
    other.sampler.set_epoch(1)
    assert len(list(other)) == 10


def test_state_moves_between_numbers_of_processes(splits: Splits) -> None:
    whole = epochs(loader(splits.train, Augmentation(), batch_size=8), 1)
    interrupted = loader(splits.train, Augmentation(), batch_size=4, rank=1, world_size=2)
    iterator = iter(interrupted)
    next(iterator)
    resumed = loader(splits.train, Augmentation(), batch_size=8)
    resumed.load_state_dict(interrupted.state_dict())
    assert_equal(list(resumed), whole[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_image_stops_with_its_path(files: FileImages, workers: int, quick_shutdown: None) -> None:
    files.paths[11].write_text("<html>")
    with pytest.raises(BadImageError, match=f"{files.paths[11]}: not an image"):
        epochs(loader(files, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_skipped_counted_and_not_replaced(files: FileImages, workers: int) -> None:
    plain = Augmentation()
    whole = epochs(loader(files, plain, batch_size=4), 2)
    broken = files.paths[11], files.paths[20]
    broken[0].write_text("<html>")
    broken[1].write_bytes(b"")
    images = loader(files, plain, batch_size=4, workers=workers, on_bad="skip")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        skipped = epochs(images, 2)
    assert images.bad.keys() <= {str(path) for path in broken}
    said = [warning for warning in caught if "skipped bad image" in str(warning.message)]
    assert len(said) == len(images.bad) > 0
    assert len(skipped) == len(whole)
    for (batch, labels), (expected, expected_labels) in zip(skipped, whole, strict=True):
        kept = [i for i, image in enumerate(expected) if any(torch.equal(image, other) for other in batch)]
        assert torch.equal(expected[kept], batch)
        assert torch.equal(expected_labels[kept], labels)
    missing = sum(
        len(expected) - len(batch) for (batch, _), (expected, _) in zip(skipped, whole, strict=True)
    )
    assert len(images.bad) <= missing <= 4


def test_batch_of_bad_images_only(files: FileImages) -> None:
    for path in files.paths:
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="skipped bad image"),
        pytest.raises(ValueError, match="batch 0 of epoch 0 is empty: all 8 images are bad"),
    ):
        next(iter(loader(files, on_bad="skip")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, r"workers must be in \[0, 256\], got -1"),
        ({"worker_timeout": 0}, "worker_timeout must be positive"),
    ],
)
def test_impossible_loaders(splits: Splits, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(splits.train, **options)
