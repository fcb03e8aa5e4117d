import os
from pathlib import Path

import pytest
import torch

from vit_pytorch.training.checkpoints import CheckpointError, write_checkpoint
from vit_pytorch.training.runs import check_writable, find_checkpoint, new_run_folder, prepare_run_folder

STATE = {"state_dict": {"model.weight": torch.ones(3)}}


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_folder_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(OSError, match=f"the output folder {folder} cannot be written"):
            check_writable(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written: Permission denied"):
        check_writable(tmp_path)


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs a file system that takes no files")
def test_a_file_system_that_takes_no_files(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the output folder /proc/self cannot be written"):
        check_writable("/proc/self")


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert contents(tmp_path / "a") == {"b": None}


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run = prepare_run_folder(tmp_path / "run")
    write_checkpoint(STATE, run / "checkpoints" / "epoch-0001")
    before = contents(run)
    with pytest.raises(FileExistsError, match="already holds a run or files"):
        prepare_run_folder(run)
    assert contents(run) == before


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        prepare_run_folder(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_new_folders_are_numbered(tmp_path: Path) -> None:
    names = [new_run_folder(tmp_path / "runs", "digits").name for _ in range(3)]
    assert names == ["digits-0001", "digits-0002", "digits-0003"]


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        find_checkpoint(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    run = prepare_run_folder(tmp_path / "run")
    (run / "checkpoints" / ".epoch-0001.tmp").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        find_checkpoint(run)


def test_find_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for name in ("epoch-0001", "epoch-0002", "epoch-0003"):
        write_checkpoint(STATE, folder / name)
    assert find_checkpoint(tmp_path).path == folder / "epoch-0003"
    with pytest.raises(FileNotFoundError, match="there is no best checkpoint"):
        find_checkpoint(tmp_path, "best")
    (folder / "best").symlink_to("epoch-0001")
    (folder / "last").symlink_to("epoch-0002")
    assert find_checkpoint(tmp_path, "best").path == folder / "epoch-0001"
    assert find_checkpoint(tmp_path).path == folder / "epoch-0002"
    with pytest.raises(ValueError, match="must be 'last' or 'best', got 'first'"):
        find_checkpoint(tmp_path, "first")  # type: ignore[arg-type]

    os.truncate(folder / "epoch-0002" / "training.pt", 10)
    with pytest.raises(CheckpointError, match=f"beside it is {folder / 'epoch-0003'}"):
        find_checkpoint(tmp_path)
