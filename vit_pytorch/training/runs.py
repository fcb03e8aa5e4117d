"""Run folders: one training each, never two, and one process at a time."""

import errno
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from vit_pytorch.create import MODEL
from vit_pytorch.storage import missing_folders, remove_empty
from vit_pytorch.training.checkpoints import Checkpoint, list_checkpoints, verify_checkpoint, written_at
from vit_pytorch.training.config import CONFIG, END

try:
    import fcntl
except ImportError:
    # not on Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINTS = "checkpoints"
_CLAIM = ".run"
# seconds by which the clocks of machines that share a folder may differ
CLOCK = 60.0


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


def check_creatable(folder: str | os.PathLike[str]) -> None:
    """Make sure that files could be written in a folder, as `check_writable` does, but do not make it."""
    folder = Path(folder).absolute()
    made = missing_folders(folder)
    try:
        check_writable(folder)
    finally:
        remove_empty(made)


@contextmanager
def hold_run(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager: keep other processes out of the folder of a run.

    The lock is the kernel's, which releases it when the process ends, however it ends. The file `.run` says
    who holds it. Where the system or the file system has no locks, a warning says so.

    Raises:
        BlockingIOError: if a process holds it; names host and process
        OSError: if the folder cannot be written
    """
    folder = Path(folder).absolute()
    check_writable(folder)
    with (folder / _CLAIM).open("a+", encoding="utf-8") as file:
        try:
            if fcntl is None:
                raise OSError(errno.ENOLCK, "the system has none")
            # a lock of the process, not of the open file, which workers that outlive it would keep
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise BlockingIOError(
                    error.errno,
                    f"{folder} is in use by {file.read().strip() or 'another process'}: one process at a "
                    "time may train in it; SIGTERM stops that one with a checkpoint",
                ) from error
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}): a second process in it would go unnoticed",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextmanager
def start_run(folder: Path, *, numbered: bool = False) -> Iterator[Path]:
    """Context manager: claim a folder for a new run and hold it; see `prepare_run_folder` and `hold_run`.

    What fails before the run's configuration is written has not begun, and leaves no folder.

    Args:
        folder: the run's folder
        numbered: whether to add the first free number to its name

    Returns:
        The folder, absolute.
    """
    folder = new_run_folder(folder.parent, folder.name) if numbered else prepare_run_folder(folder)
    with hold_run(folder):
        # again, since another process may have had it in between
        prepare_run_folder(folder)
        try:
            yield folder
        except BaseException:
            if not (folder / CONFIG).exists():
                shutil.rmtree(folder)
            raise


def prepare_run_folder(folder: str | os.PathLike[str]) -> Path:
    """Make sure that a folder may be that of a new run.

    Args:
        folder: The run's folder.

    Returns:
        The folder, absolute.

    Raises:
        FileExistsError: If the folder holds anything, unless that is a run that ended before its first
            checkpoint, from which nothing could go on.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder).absolute()
    check_writable(folder)
    held = sorted(path.name for path in folder.iterdir())
    # somebody may have removed the checkpoints of a run that has finished
    begun = list_checkpoints(folder / CHECKPOINTS) or MODEL in held
    if held and (_CLAIM not in held or begun):
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


def latest_run(parent: str | os.PathLike[str]) -> Path:
    """Return the run in a folder of runs whose latest checkpoint is the latest of all, as they say.

    Raises:
        FileNotFoundError: If no run has a checkpoint.
        ValueError: If the times do not tell: a checkpoint is of the future, or two runs have the same one.
    """
    written = {
        path.parent.parent: written_at(path)
        for path in Path(parent).glob(f"*/{CHECKPOINTS}/last")
        if path.exists()
    }
    if not written:
        raise FileNotFoundError(f"nothing to resume: no run in {parent}/ has a checkpoint")
    latest = max(written, key=lambda folder: written[folder])
    if written[latest] > time.time() + CLOCK:
        day = datetime.fromtimestamp(written[latest]).isoformat(" ", "seconds")
        raise ValueError(
            f"which run is the latest is not known: the clock is behind the checkpoint that {latest} wrote "
            f"at {day}; name the run by --resume RUN"
        )
    if same := [folder for folder in written if written[folder] == written[latest] and folder != latest]:
        raise ValueError(
            f"which run is the latest is not known: {latest} and {same[0]} have the same latest checkpoint; "
            "name the run by --resume RUN"
        )
    return latest


def check_run(folder: Path) -> None:
    """Check that a folder is that of a run, whose configuration is whole.

    Raises:
        FileNotFoundError: If it holds no configuration.
        ValueError: If the configuration ends too early; what is left may be valid, and say something else.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"nothing to resume: {folder} is not the folder of a run (no {CONFIG} in it)")
    if not END.search(file.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(f"{file} is damaged: it ends before its last setting; put a whole copy in its place")


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
