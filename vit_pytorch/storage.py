"""Files and folders that are written all or nothing, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

# with one slash where it is a path by now, somewhere within
ADDRESS = re.compile(r"(^|/)([a-z][a-z0-9+.-]+:/|(https?|ftp|s3|gs|hf|file):)/", re.IGNORECASE)


def is_address(name: str) -> bool:
    """Return whether a name is an address, such as `https://a.example/x.png`, and no path."""
    return ADDRESS.search(name) is not None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager: write a file or a folder under a temporary name, from which it is renamed when whole.

    The temporary name is in the folder where `path` will stand. What is written there is synced to the disk
    before it is renamed, so that a file or folder under its final name is complete, also after SIGKILL.

    Args:
        path: what is written; what stands there is replaced, and its folder is made where there is none

    Returns:
        Where to write it: a file, or a folder to be made.

    Raises:
        OSError: if it cannot be written, for example for want of space; names `path` and the reason. What was
            written is removed, and what stood there before is as it was.
    """
    path = Path(path).absolute()
    temporary, _ = _names(path)
    try:
        with making_folder(path.parent):
            try:
                recover(path)
                yield temporary
                _sync(temporary)
                _move_into_place(temporary, path)
            except BaseException:
                _remove(temporary)
                raise
    except Exception as error:
        number = _system_error(error)
        if number is None:
            raise
        raise OSError(number, f"cannot write {path}: {_explain(number, path)}") from error


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file all or nothing (see `replacing`); text is encoded as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def full_disk_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager: name what is written where there is no space for it, or none may be written.

    Raises:
        OSError: names `path` and the reason
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise OSError(number, f"cannot write {path}: {_explain(number, Path(path).absolute())}") from error


@contextmanager
def making_folder(folder: Path) -> Iterator[None]:
    """Context manager: make a folder for what is written in it; it is removed again if that fails."""
    missing = missing_folders(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        remove_empty(missing)
        raise


def missing_folders(folder: Path) -> list[Path]:
    """Return a folder, if it does not exist, and those above it that do not, the innermost first."""
    return [part for part in (folder, *folder.parents) if not part.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the innermost first, unless they were never made or something is in them."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def recover(path: Path) -> None:
    """Remove what a killed process left half written of a file or folder, and bring back what it was about to
    replace."""
    temporary, replaced = _names(path)
    _remove(temporary)
    if path.exists():
        _remove(replaced)
    elif replaced.exists():
        replaced.rename(path)


def _names(path: Path) -> tuple[Path, Path]:
    """Return the names of what is being written, and of a folder that is being replaced."""
    # the suffix tells programs the format that they write
    return path.with_name(f".{path.stem}.tmp{path.suffix}"), path.with_name(f".{path.name}.old")


def _move_into_place(temporary: Path, path: Path) -> None:
    if temporary.is_dir():
        # unlike a file, a folder cannot replace another one in one step
        replaced = _names(path)[1]
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        _sync_one(path.parent)
        _remove(replaced)
    else:
        temporary.replace(path)
        _sync_one(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    # a file system that is read-only refuses to remove even what is not there
    elif path.is_symlink() or path.exists():
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if path.is_dir():
        for member in sorted(path.iterdir()):
            _sync(member)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _system_error(error: BaseException | None) -> int | None:
    """Return the operating system's error number behind an error; torch and safetensors hide it in theirs."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if isinstance(error, SafetensorError) and (match := re.search(r"\(os error (\d+)\)", str(error))):
            return int(match[1])
        error = error.__cause__ or error.__context__
    return None


def _explain(number: int, path: Path) -> str:
    # a device is not full for want of space in its folder
    if number != errno.ENOSPC or path.is_char_device() or path.is_block_device():
        return os.strerror(number)
    folder = next(part for part in path.parents if part.exists())
    free = shutil.disk_usage(folder).free
    return f"no space left on the disk ({free / 1e6:.1f} MB free in {folder})"
