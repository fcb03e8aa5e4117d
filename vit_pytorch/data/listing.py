"""Files below folders: each folder once, regular files only, and a list of what is left out."""

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vit_pytorch.storage import is_address

# Reasons for which something is left out.
TWICE = "link to a folder that is there already"
DANGLING = "link to nothing"
IRREGULAR = "no regular file"
UNKNOWN = "file of another type"
STRAY = "file beside the class folders"
BESIDE_SPLITS = "file beside the folders of splits"
HIDDEN = "hidden"
# what begins a source of data that is no folder
SOURCES = ("csv", "idx", "hf", "wds", "stream", "video", "nifti")
# what stands before the name of a file that is data by itself, by its extension
PREFIXES = {".tar": "wds", **dict.fromkeys((".csv", ".tsv", ".tab", ".parquet", ".pq"), "csv")}


class Listing:
    """Lists files of some types below folders, and remembers what it leaves out.

    Links are followed; a folder is visited once, however many links lead to it. Of files only regular ones
    are listed, since pipes and devices may never end. Hidden folders are left out, and hidden files, of which
    those of other types do not count.

    Args:
        extensions: How names of such files end, in small letters.
        is_known: Decides by content about a file whose name has no extension; by default it is left out.

    Attributes:
        left_out: Paths that were left out, by reason.
    """

    def __init__(self, extensions: Collection[str], is_known: Callable[[Path], bool] | None = None) -> None:
        self.extensions = extensions
        self.is_known = is_known
        self.left_out: dict[str, list[Path]] = {}
        self._visited: dict[tuple[int, int], Path] = {}

    def claim(self, folder: Path) -> Path | None:
        """Note that a folder is visited; return under which path it was visited before, if it was."""
        status = folder.stat()
        identity = status.st_dev, status.st_ino
        before = self._visited.get(identity)
        if before is None:
            self._visited[identity] = folder
        return before

    def leave_out(self, path: Path, reason: str) -> None:
        """Note that a path is left out."""
        self.left_out.setdefault(reason, []).append(path)

    def files_below(self, folder: Path) -> Iterator[Path]:
        """Yield the files at any depth below a folder, which is claimed: in order of names, files first."""
        below: list[Path] = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = folder / entry.name
            if entry.name[0] == ".":
                self._leave_out_hidden(path)
                continue
            mode = self._mode(path)
            if stat.S_ISDIR(mode):
                below.append(path)
            elif self._is_listed(path, mode):
                yield path
        for path in below:
            if self.claim(path) is None:
                yield from self.files_below(path)
            else:
                self.leave_out(path, TWICE)

    def stray_files(self, folder: Path, reason: str = STRAY) -> None:
        """Note links to nothing, what is hidden, and files of the types sought, in a folder whose folders are
        classes, or splits."""
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name[0] == ".":
                self._leave_out_hidden(folder / entry.name)
                continue
            mode = self._mode(folder / entry.name)
            if stat.S_ISDIR(mode):
                continue
            if mode == 0:
                self.leave_out(folder / entry.name, DANGLING)
            elif extension(entry.name) in self.extensions:
                self.leave_out(folder / entry.name, reason)

    def _leave_out_hidden(self, path: Path) -> None:
        if path.is_dir() or extension(path.name) in self.extensions:
            self.leave_out(path, HIDDEN)

    def _mode(self, path: Path) -> int:
        """Return the type of what a path leads to; 0 if that is nothing."""
        try:
            return path.stat().st_mode
        except OSError:
            # A link may lead to nothing, to itself, or where this user must not look.
            if path.is_symlink():
                return 0
            raise

    def _is_listed(self, path: Path, mode: int) -> bool:
        if stat.S_ISREG(mode):
            if path.suffix or self.is_known is None:
                known = extension(path.name) in self.extensions
            else:
                known = self.is_known(path)
            if known:
                return True
        reason = DANGLING if mode == 0 else UNKNOWN if stat.S_ISREG(mode) else IRREGULAR
        self.leave_out(path, reason)
        return False


def extension(name: str) -> str:
    """Return the extension of a file's name in small letters, with that before a final ``.gz``."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last == ".gz" else last


def likely_path(path: str | os.PathLike[str]) -> str:
    """Return what to say of a path to nothing, or to no folder: it is an address or a file, or leads
    somewhere with slashes for its backslashes, or with an extension."""
    name = os.fspath(path)
    if Path(path).is_file():
        prefix = PREFIXES.get(extension(name))
        return (
            f"; it is a file: give {prefix}:{name}" if prefix else "; it is a file, unpack it if it is packed"
        )
    if is_address(name):
        return "; addresses are not fetched: download it first"
    if name.partition(":")[0] in SOURCES:
        return "; here are paths, and patterns of them: `vit evaluate RUN --data` takes such sources of data"
    slashed = name.replace("\\", "/")
    if slashed != name and Path(slashed).exists():
        return "; backslashes separate no folders on this system, and with slashes it is there"
    found = (f"{name}{ending}" for ending in (".jpg", ".jpeg", ".png", ".tif", ".JPG", ".PNG"))
    named = next((file for file in found if Path(file).is_file()), None)
    return "" if named is None else f"; there is {Path(named).name}"


def describe_left_out(left_out: Mapping[str, Sequence[Path]], most: int = 3) -> str:
    """Return what was left out in one line: how many paths for each reason, and the first of them."""
    parts = []
    for reason, paths in left_out.items():
        more = f", and {len(paths) - most} more" if len(paths) > most else ""
        parts.append(f"{reason} ({len(paths)}: {', '.join(map(str, paths[:most]))}{more})")
    return "; ".join(parts)
