"""Small images of files are held in memory, and are those that their files have."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from vit_pytorch.data import ArrayImages, Augmentation, FileImages, ImageData, Splits
from vit_pytorch.data.decode import BadImageError
from vit_pytorch.data.held import MOST_BYTES, HeldImages, are_small
from vit_pytorch.preprocessing import Preprocessing

COUNT = 12


def write(folder: Path, sizes: list[tuple[int, int]]) -> Splits:
    """Images of noise as PNG files, two classes."""
    pixels = torch.Generator().manual_seed(0)
    paths = []
    for number, (height, width) in enumerate(sizes):
        array = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=pixels).numpy()
        paths.append(folder / f"{number:02}.png")
        Image.fromarray(array).save(paths[-1])
    images = FileImages(paths, torch.arange(len(paths)) % 2)
    return Splits(("a", "b"), images, images)


def data(splits: Splits, **options: Any) -> ImageData:
    return ImageData(splits, **{"image_size": 10, "batch_size": 4, "workers": None, **options})


def batches(loader: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_evaluation_of_held_images_is_that_of_files(tmp_path: Path) -> None:
    splits = write(tmp_path, [(8, 10)] * COUNT)
    held, read = data(splits).val_dataloader(), data(splits, in_memory=False).val_dataloader()
    assert isinstance(held.images, HeldImages)
    assert held.workers == 0
    assert isinstance(read.images, FileImages)
    assert read.workers > 0
    for mine, theirs in zip(batches(held), batches(read), strict=True):
        assert torch.equal(mine, theirs)
    for index in (0, COUNT - 1):
        assert held.images.name(index) == read.images.name(index)
        assert torch.equal(held.images.read(index, 3), read.images.read(index, 3))
        with held.images.stored(index) as mine, read.images.stored(index) as theirs:
            assert mine.read() == theirs.read()
    assert held.images.stored_bytes() == read.images.stored_bytes()
    part = held.images.subset(torch.tensor([3, 1]))
    assert part.name(0) == read.images.name(3)
    assert torch.equal(part.read(1, 3), read.images.read(1, 3))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_workers_are_as_many_as_the_cores_that_the_process_may_use(tmp_path: Path) -> None:
    """A container, a job or `taskset` may give it fewer than there are."""
    reader, mine = data(write(tmp_path, [(8, 10)] * COUNT), in_memory=False), os.sched_getaffinity(0)
    assert reader.val_dataloader().workers == min(8, len(mine))
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert reader.val_dataloader().workers == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_training_on_held_images_is_that_on_arrays(tmp_path: Path) -> None:
    splits = write(tmp_path, [(10, 10)] * COUNT)
    pixels = torch.stack([splits.train.read(index, 3) for index in range(COUNT)])
    arrays = ArrayImages(pixels, splits.train.labels, origin="arrays")
    augmentation = Augmentation(shift=2, flip=0.5, rand_augment=1, random_erasing=0.5)
    options: dict[str, Any] = {"augmentation": augmentation, "seed": 3}
    held = data(splits, **options).train_dataloader()
    expected = data(Splits(("a", "b"), arrays, arrays), **options).train_dataloader()
    assert isinstance(held.images, HeldImages)
    for mine, theirs in zip(batches(held), batches(expected), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([(10, 10)] * 11 + [(10, 9)], {}),
        ([(11, 10)] * COUNT, {}),
        ([(10, 10)] * COUNT, {"image_size": 80}),
        ([(10, 10)] * COUNT, {"window": (0.0, 100.0)}),
        ([(10, 10)] * COUNT, {"max_tokens": 4, "patch_size": (5, 5)}),
    ],
    ids=["one of another size", "larger than the input", "large input", "window", "native sizes"],
)
def test_others_are_read_when_they_are_needed(
    tmp_path: Path, sizes: list[tuple[int, int]], options: dict[str, Any]
) -> None:
    splits = write(tmp_path, sizes)
    loader = data(splits, workers=0, **options).val_dataloader()
    assert type(loader.images) is FileImages
    assert sum(len(labels) for _, labels in loader) == COUNT


def test_a_split_of_more_than_512_mib_is_not_held(tmp_path: Path) -> None:
    splits = write(tmp_path, [(10, 10)] * COUNT)
    prep = Preprocessing(image_size=(10, 10))
    most = MOST_BYTES // 300
    assert are_small(splits.train.subset(torch.arange(most) % COUNT), prep)
    assert not are_small(splits.train.subset(torch.arange(most + 1) % COUNT), prep)


def test_larger_images_are_held_where_it_is_asked_for(tmp_path: Path) -> None:
    splits = write(tmp_path, [(90, 80)] * COUNT)
    held = data(splits, image_size=70, in_memory=True, workers=0).val_dataloader()
    read = data(splits, image_size=70, workers=0).val_dataloader()
    assert isinstance(held.images, HeldImages)
    for mine, theirs in zip(batches(held), batches(read), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ([(10, 10)] * 11 + [(10, 9)], {}, "images of one size, but theirs differ"),
        ([(10, 10)] * COUNT, {"window": (0.0, 100.0)}, "without data.window"),
        ([(10, 10)] * COUNT, {"max_tokens": 4, "patch_size": (5, 5)}, "with data.max_tokens they differ"),
    ],
    ids=["sizes", "window", "native sizes"],
)
def test_what_cannot_be_held_is_refused_where_it_is_asked_for(
    tmp_path: Path, sizes: list[tuple[int, int]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        data(write(tmp_path, sizes), in_memory=True, workers=0, **options).val_dataloader()


def test_a_bad_image_stops_before_training_or_is_skipped(tmp_path: Path) -> None:
    splits = write(tmp_path, [(10, 10)] * COUNT)
    (tmp_path / "05.png").write_bytes(b"no image")
    for options in ({}, {"in_memory": True, "on_bad": "skip"}):
        with pytest.raises(BadImageError, match=r"05\.png"):
            data(splits, workers=0, **options).train_dataloader()
    loader = data(splits, workers=0, on_bad="skip").val_dataloader()
    assert type(loader.images) is FileImages
    with pytest.warns(UserWarning, match=r"05\.png") as told:
        kept = sum(len(labels) for _, labels in loader)
    assert kept == COUNT - 1
    assert len(told) == 1
