import os
import signal
import time
import warnings

import pytest
import torch
from torch import Tensor

from vit_pytorch.data import ArrayImages, Augmentation, ImageLoader, Preprocessing, Splits
from vit_pytorch.data import loader as loader_module

pytestmark = pytest.mark.usefixtures("quick_shutdown")


class FaultyImages(ArrayImages):
    """Reading one image kills, hangs or raises."""

    fault = "none"
    victim = 13

    def read(self, index: int, channels: int) -> Tensor:
        if index == self.victim and self.fault == "kill":
            time.sleep(0.3)  # torch learns of a death at once only after all workers have started
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.victim and self.fault == "hang":
            time.sleep(3600)
        if index == self.victim and self.fault == "raise":
            raise OSError("disk on fire")
        return super().read(index, channels)


def faulty(splits: Splits, fault: str, workers: int) -> ImageLoader:
    assert isinstance(splits.train, ArrayImages)
    images = FaultyImages(splits.train.images, splits.train.labels, origin="made")
    images.fault = fault
    # Colour jitter has images in memory read singly.
    return ImageLoader(
        images,
        Preprocessing(image_size=(6, 6), channels=1),
        Augmentation(color_jitter=0.1),
        batch_size=4,
        num_classes=2,
        workers=workers,
        worker_timeout=2,
    )


def worker_of_victim(loader: ImageLoader) -> int:
    return next(request.batch for request in loader.sampler if 13 in request.indices) % 2


def test_killed_worker(splits: Splits) -> None:
    loader = faulty(splits, "kill", workers=2)
    message = (
        rf"data-loader worker {worker_of_victim(loader)} \(process \d+\) failed while reading made\[13\]: "
        r"DataLoader worker \(pid"
    )
    with pytest.raises(RuntimeError, match=message):
        list(loader)


def test_hanging_worker(splits: Splits) -> None:
    loader = faulty(splits, "hang", workers=2)
    message = (
        rf"data-loader worker {worker_of_victim(loader)} \(process \d+\) failed while reading made\[13\]: "
        "DataLoader timed out after 2 seconds"
    )
    with pytest.raises(RuntimeError, match=message):
        list(loader)


def test_raising_worker(splits: Splits) -> None:
    loader = faulty(splits, "raise", workers=2)
    worker = worker_of_victim(loader)
    message = rf"^data-loader worker {worker}: reading made\[13\] failed: OSError: disk on fire$"
    with pytest.raises(RuntimeError, match=message):
        list(loader)


def test_raising_without_workers(splits: Splits) -> None:
    with pytest.raises(RuntimeError, match=r"^reading made\[13\] failed: OSError: disk on fire$"):
        list(faulty(splits, "raise", workers=0))


def test_no_fault_no_error(splits: Splits) -> None:
    assert sum(len(images) for images, _ in faulty(splits, "none", workers=2)) == 40


def test_more_workers_than_cores_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "usable_cores", lambda: 1)
    loader_module._warn_of_workers.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            images = ArrayImages(torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.arange(8) % 2, origin="x")
            prep = Preprocessing(image_size=(6, 6), channels=1)
            loader = ImageLoader(images, prep, None, batch_size=4, num_classes=2, workers=2)
            assert [len(labels) for _, labels in loader] == [4, 4]
    assert [str(warning.message) for warning in said] == [
        "workers: 2, usable cores: 1; fewer workers may be faster"
    ]
