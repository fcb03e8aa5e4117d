import gzip
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests import forked
from tests.forked import environment
from vit_pytorch.cli import main

TINY = [
    "--model.dim=16",
    "--model.depth=1",
    "--model.heads=2",
    "--model.dim-head=8",
    "--model.mlp-dim=16",
    "--batch-size=64",
    "--schedule.warmup-epochs=0",
]

Vit = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "vit_pytorch.cli", *map(str, arguments)]


@pytest.fixture
def vit(tmp_path: Path) -> Vit:
    """Run the command in a process of its own."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return forked.run(command(*arguments), cwd=tmp_path, env=environment(), timeout=300)

    return run


def train(*arguments: str | Path) -> int:
    """Train in this process."""
    return main(["train", "--accelerator=cpu", *map(str, arguments)])


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits: small, three epochs."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert train("--output", folder, "--epochs=3", *TINY) == 0
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as PNG files, a folder a class: three classes of 20 images."""
    folder = tmp_path_factory.mktemp("images")
    digits = load_digits()
    for label, name in enumerate(("zero", "one", "two")):
        (folder / name).mkdir()
        for i, image in enumerate(digits.images[digits.target == label][:20]):
            Image.fromarray((image * 15).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as IDX files, the test part gzipped."""
    folder = tmp_path_factory.mktemp("idx")
    digits = load_digits()
    images, labels = (digits.images * 15).astype(np.uint8), digits.target.astype(np.uint8)
    for part, chosen in (("train", slice(0, 300)), ("t10k", slice(300, 400))):
        pixels = struct.pack(">4B3I", 0, 0, 8, 3, len(images[chosen]), 8, 8) + images[chosen].tobytes()
        classes = struct.pack(">4BI", 0, 0, 8, 1, len(labels[chosen])) + labels[chosen].tobytes()
        for kind, content in (("images-idx3", pixels), ("labels-idx1", classes)):
            name = f"{part}-{kind}-ubyte"
            if part == "t10k":
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder
