"""Standard streams that a command may write to, whatever has become of them."""

import errno
import io
import os
import sys
from typing import Any

# the reader has left, or the terminal
LEFT = (errno.EPIPE, errno.EIO)
# why a stream, by its number, could not be written, such as a full disk
lost: dict[int, OSError] = {}


class LastingFile(io.FileIO):
    """A file that goes on taking what is written to it when nobody reads it, or its terminal has gone."""

    def write(self, data: Any) -> int:
        """Write bytes; they are lost where they cannot be written."""
        try:
            written = super().write(data)
        except OSError as error:
            reason = "nobody reads standard output any more"
            if error.errno not in LEFT:
                reason = f"standard output cannot be written ({error.strerror})"
                lost.setdefault(self.fileno(), error)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() != 2:
                print(f"vit: {reason}; the command goes on", file=sys.stderr)
            return len(data)
        return written if written is not None else 0


def keep_streams() -> None:
    """Keep a command running to its end when standard output or standard error is closed, or is not UTF-8.

    Characters that a stream cannot encode are written as escapes. Streams that somebody has put in the place
    of the process's own, as notebooks and tests do, are left alone.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # or the next file that is opened would be taken for it
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and stream.fileno() == number):
            encoding = "utf-8" if stream is None else stream.encoding
            raw = io.BufferedWriter(LastingFile(number, "w", closefd=False))
            lasting = io.TextIOWrapper(
                raw,
                encoding=encoding,
                errors="backslashreplace",
                line_buffering=True,
                write_through=number == 2,
            )
            setattr(sys, name, lasting)
