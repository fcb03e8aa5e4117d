"""Shards that are read as a stream: their names, and their bytes from a file, a server or a command."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Sequence
from http.client import HTTPException
from math import prod
from subprocess import Popen, TimeoutExpired
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from vit_pytorch.data.shards import END_MARK

# of an HTTP source: seconds without an answer, attempts, and the pause between them
TIMEOUT, ATTEMPTS, PAUSE = 10.0, 2, 1.0
REMOTE = ("http://", "https://")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
NUMBERS = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")


class ShardNames(Sequence[str]):
    """The names that a pattern stands for, each made when it is asked for.

    Braces as in a shell: `{000..999}`, `{0..90..10}`, `{a,b}`. Of local files, wildcards are listed.

    Args:
        pattern: A path, an address or a command.

    Raises:
        ValueError: No file matches the wildcards.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.parts = [_alternatives(piece) for piece in _pieces(pattern)]
        local = "://" not in pattern and not pattern.startswith("pipe:")
        if local and glob.has_magic(pattern):
            found = sorted({match for name in self for match in glob.glob(name)})
            if not found:
                raise ValueError(f"no such shard: {pattern}")
            self.parts = [found]

    def __len__(self) -> int:
        return prod(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be in [{-len(self)}, {len(self) - 1}], got {index}")
        chosen = []
        place = index % len(self)
        for part in reversed(self.parts):
            place, digit = divmod(place, len(part))
            chosen.append(part[digit])
        return "".join(reversed(chosen))


class _Numbers(Sequence[str]):
    """The numbers of a brace, padded with zeros as its ends are."""

    def __init__(self, first: str, last: str, step: str | None) -> None:
        low, high, by = int(first), int(last), abs(int(step or 1)) or 1
        self.numbers = range(low, high + 1, by) if low <= high else range(low, high - 1, -by)
        padded = any(re.match(r"-?0\d", end) for end in (first, last))
        self.width = max(len(first), len(last)) if padded else 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return f"{self.numbers[index]:0{self.width}d}"


def _pieces(pattern: str) -> list[str]:
    """Split a pattern into braces, with what is nested in them, and what is between."""
    pieces, depth = [""], 0
    for token in re.findall(r"\\.|[{}]|[^\\{}]+|\\", pattern):
        if token == "{":
            depth += 1
            if depth == 1:
                pieces.append("")
        pieces[-1] += token
        if token == "}" and depth:
            depth -= 1
            if not depth:
                pieces.append("")
    return [piece for piece in pieces if piece]


def _alternatives(piece: str) -> Sequence[str]:
    if numbers := NUMBERS.fullmatch(piece):
        return _Numbers(*numbers.groups())
    if "{" not in piece and "\\" not in piece:
        return [piece]
    from braceexpand import braceexpand

    return list(braceexpand(piece))


class ShardStream:
    """The bytes of a shard, from its start to its end.

    Args:
        name: What messages call it.
        file: What is read: a file, an answer, or the output of a command.
    """

    def __init__(self, name: str, file: Any) -> None:
        self.name = name
        self.file = file
        self._head = self._tail = b""
        self._process: Popen[bytes] | None = getattr(file, "proc", None)

    def __str__(self) -> str:
        return self.name

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes; none at the end."""
        part: bytes = self.file.read(size)
        self._head = self._head or part[:8]
        self._tail = (self._tail + part)[-END_MARK:]
        return part

    def check_end(self) -> None:
        """Read what is left, and check that the archive is whole.

        Raises:
            ValueError: It has no end mark, without which a shard that was cut between two members would only
                seem smaller; or the command that it comes from has failed.
        """
        while self.read(1 << 16):
            pass
        if status := self._status():
            raise ValueError(status)
        if not self._head.startswith(COMPRESSED) and self._tail != bytes(END_MARK):
            raise ValueError(f"it ends without the {END_MARK} zero bytes of a whole tar file")

    def reason(self, error: BaseException) -> str:
        """Return in words why reading failed."""
        return self._status() or reason_of(error)

    def _status(self) -> str:
        """Return in words how the command failed that the bytes come from; nothing if none has."""
        if self._process is None:
            return ""
        try:
            status = self._process.wait(timeout=TIMEOUT)
        except TimeoutExpired:
            return f"the command has not ended {TIMEOUT:g} seconds after its output"
        return f"the command left with status {status}" if status else ""

    def __enter__(self) -> ShardStream:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is None:
            self.file.close()
            return
        # a command that is not read to its end would be an error of its own to WebDataset
        self.file.stream.close()
        self._process.terminate()
        self._process.wait()


def reason_of(error: BaseException) -> str:
    """Return in words what an error of a source says."""
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return reason_of(inner)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # WebDataset adds to the arguments
    return str(error.args[0] if error.args else type(error).__name__).partition(" @ ")[0]


def open_shard(name: str) -> ShardStream:
    """Open a shard; what the network may lose for a moment is asked for again.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is a folder, a pipe or a device.
    """
    if not name.startswith(REMOTE):
        from webdataset.gopen import gopen

        if not name.startswith("pipe:") and os.path.exists(name) and not os.path.isfile(name):
            # a pipe would wait for somebody to write to it, and a device have no end
            raise ValueError("it is no regular file")
        return ShardStream(name, gopen(name))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ShardStream(name, urlopen(name, timeout=TIMEOUT))
        except (OSError, HTTPException) as error:
            gone = isinstance(error, HTTPError) and error.code < 500
            if gone or attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")
