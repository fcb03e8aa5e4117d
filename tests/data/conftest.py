import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from made_pictures import picture
from torch.utils.data import _utils

from vit_pytorch.data import ArrayImages, Splits


@pytest.fixture
def make_folder() -> Callable[..., Path]:
    """Writes a folder per class with so many PNG files each, no two alike."""

    def make(root: Path, **counts: int) -> Path:
        for label, (name, count) in enumerate(counts.items()):
            (root / name).mkdir(parents=True)
            for i in range(count):
                picture(1000 * label + i).save(root / name / f"{i:03}.png")
        return root

    return make


@pytest.fixture
def splits() -> Splits:
    """Forty training images in memory, five of validation, seven of test, of two classes."""
    generator = torch.Generator().manual_seed(3)

    def images(count: int) -> ArrayImages:
        pixels = torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=generator)
        return ArrayImages(pixels, torch.arange(count) % 2, origin="made")

    return Splits(classes=("even", "odd"), train=images(40), val=images(5), test=images(7))


@pytest.fixture
def quick_shutdown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch waits this long for a worker before it is terminated; five seconds otherwise."""
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()  # an error keeps the workers, through its traceback
