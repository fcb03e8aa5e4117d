"""Run folders: one training each, never two."""

import os
import tempfile
from pathlib import Path
from typing import Literal

from vit_pytorch.training.checkpoints import Checkpoint, list_checkpoints, verify_checkpoint

CHECKPOINTS = "checkpoints"
_CLAIM = ".run"


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make sure, before any work is done, that files can be written in a folder; it is made if need be.

    Raises:
        OSError: Naming the folder and the reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno, f"the output folder {folder} cannot be written: {error.strerror}"
        ) from error


def prepare_run_folder(folder: str | os.PathLike[str]) -> Path:
    """Claim a folder for a new run.

    Args:
        folder: The run's folder.

    Returns:
        The folder, absolute.

    Raises:
        FileExistsError: If the folder holds anything.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder).absolute()
    check_writable(folder)
    try:
        # of two processes that start at once, exactly one can make the claim
        (folder / _CLAIM).touch(exist_ok=False)
    except FileExistsError:
        held: list[str] = [_CLAIM]
    else:
        held = sorted(path.name for path in folder.iterdir() if path.name != _CLAIM)
        if held:
            (folder / _CLAIM).unlink()
    if held:
        raise FileExistsError(
            f"{folder} already holds a run or files ({', '.join(held[:3])}): take a new folder or resume"
        )
    return folder


def new_run_folder(parent: str | os.PathLike[str], prefix: str = "run") -> Path:
    """Claim the first free folder ``parent/prefix-0001``, ``-0002`` and so on.

    Raises:
        OSError: If `parent` cannot be written.
    """
    check_writable(parent)
    number = 1
    while True:
        folder = Path(parent) / f"{prefix}-{number:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return prepare_run_folder(folder)


def find_checkpoint(
    run_folder: str | os.PathLike[str], which: Literal["last", "best"] = "last"
) -> Checkpoint:
    """The latest or the best checkpoint of a run, checked to be whole.

    Args:
        run_folder: The run's folder.
        which: ``last`` or ``best``.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: If the run has no such checkpoint.
        CheckpointError: If it is damaged; the message names an earlier one that is whole, if there is one.
    """
    if which not in ("last", "best"):
        raise ValueError(f"which must be 'last' or 'best', got {which!r}")
    folder = Path(run_folder).absolute() / CHECKPOINTS
    link = folder / which
    if link.exists():
        path = link.resolve()
    else:
        found = list_checkpoints(folder) if which == "last" else []
        if not found:
            raise FileNotFoundError(
                f"there is no {which} checkpoint to be found in {folder}: nothing to resume or load"
            )
        path = found[-1]
    return verify_checkpoint(path)
