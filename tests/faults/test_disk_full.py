"""The disk is full while one of a run's files is written: a sentence with its path, nothing half written, and
the run goes on when there is space."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TINY, train
from vit_pytorch import storage
from vit_pytorch.cli import main
from vit_pytorch.storage import write_file

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
    """Disk full while the record of images, configuration, metrics, model, a picture or the summary is
    written.

    Here: the path and the free space; nothing half written; the run goes on, or starts again, when there
        is space
    Others: Lightning: a traceback, and a checkpoint cut at the size of the disk under its final name;
        `Trainer`: a traceback, and an empty folder of the checkpoint
    """
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


@pytest.mark.parametrize("name", ["0-relevance.png", "report.html"])
def test_disk_full_while_an_explanation_is_written(
    name: str,
    run: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Disk full while `vit explain` writes a picture or its page.

    Here: the path and the free space; no file is half written
    Others: no counterpart
    """
    sync, full = storage._sync, storage._names(Path(name))[0].name

    def fail(path: Path) -> None:
        if path.name == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(storage, "_sync", fail)
    image = image_folder / "one" / "0.png"
    assert main(["explain", str(run), str(image), "--output", str(tmp_path / "out")]) == 6
    said = capsys.readouterr().err
    assert re.search(rf"cannot write {tmp_path / 'out'}/.*{name}: no space left on the disk", said)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    """Disk full while another library writes an exported model.

    Here: the path and the free space; other errors are what they are
    Others: no counterpart
    """
    with (
        pytest.raises(OSError, match=r"cannot write .*x\.onnx: no space left on the disk"),
        storage.full_disk_named(tmp_path / "x.onnx"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(FileNotFoundError, match="y"),
        storage.full_disk_named(tmp_path / "x.onnx"),
    ):
        raise FileNotFoundError(errno.ENOENT, "No such file", "y")


def test_disk_full_while_predictions_are_written(
    run: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Disk full while `vit predict --csv FILE` writes.

    Here: the path and the free space; what the file held before is there
    """
    file = tmp_path / "x.csv"
    file.write_text("before")
    predict = ["predict", str(run), str(image_folder), "--csv", str(file)]

    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_sync", fail)
        assert main(predict) == 6
    assert f"cannot write {file}: no space left on the disk" in capsys.readouterr().err
    assert file.read_text() == "before"
    assert main(predict) == 0
    assert len(file.read_text().splitlines()) == 61
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_predictions_on_a_full_device(
    run: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vit predict --csv FILE` writes to a device without space, which nothing can replace.

    Here: the device and the reason
    Others: no counterpart
    """
    assert main(["predict", str(run), str(image_folder), "--csv=/dev/full"]) == 6
    assert "cannot write /dev/full: No space left on device\n" in capsys.readouterr().err


def test_a_file_system_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is to be written on a file system that is read-only.

    Here: the path and the reason, not the name of a temporary file
    Others: no counterpart
    """

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match=f"cannot write {tmp_path / 'x.csv'}: Read-only file system"):
        write_file(tmp_path / "x.csv", "a")
