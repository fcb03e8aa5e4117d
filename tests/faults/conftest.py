import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, image_folder, train

__all__ = ["image_folder"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the digits: small, two epochs."""
    folder = tmp_path_factory.mktemp("faults") / "digits"
    assert train("--output", folder, "--epochs=2", *TINY) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "digits", symlinks=True))


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a run and what they hold, without the one that says who holds the lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".run")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-len(data) // 3] ^= 4
    file.write_bytes(data)
