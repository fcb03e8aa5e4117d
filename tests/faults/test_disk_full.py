"""The disk is full while one of a run's files is written: a sentence with its path, nothing half written, and
the run goes on when there is space."""

import errno
from pathlib import Path

import pytest

from tests.cli.conftest import TINY, train
from vit_pytorch import storage

# and whether a checkpoint is there by then
FILES = {
    "images.csv.gz": False,
    "config.yaml": False,
    "metrics.csv": False,
    "model": True,
    "curves.png": True,
    "wrong.png": True,
    "summary.md": True,
    "summary.json": True,
}


@pytest.mark.parametrize("name", FILES)
def test_disk_full(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sync = tmp_path / "run", storage._sync
    full = storage._names(run / name)[0]

    def fail(path: Path) -> None:
        if path == full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_sync", fail)
        assert train("--output", run, "--epochs=1", *TINY) == 6
    said = capsys.readouterr().err
    assert f"cannot write {run / name}: no space left on the disk" in said
    assert "Traceback" not in said
    assert not (run / name).exists()
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".run"]
    if name.endswith(".png"):
        assert (run / "summary.json").exists()
    assert (run / "checkpoints" / "last").exists() == FILES[name]
    again = ["--resume", run] if FILES[name] else ["--output", run, "--epochs=1", *TINY]
    assert train(*again) == 0
    assert all((run / written).exists() for written in FILES)
