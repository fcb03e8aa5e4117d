"""What the command says of an error, and with which status it leaves."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

import vit_pytorch
from vit_pytorch.cli import DEBUG, Status

# kinds of errors that say of themselves what they are about, by name: some come from modules that need extras
BY_TYPE = {
    "UsageError": Status.USAGE,
    "BadImageError": Status.DATA,
    "LoadingError": Status.DATA,
    "CheckpointError": Status.RUN,
    "ShardsError": Status.RUN,
    "NonFiniteError": Status.NOT_FINITE,
    "LostProcessError": Status.PROCESSES,
    "RefusedError": Status.MODEL,
    "FileExistsError": Status.RUN,
    "BlockingIOError": Status.RUN,
    "MemoryError": Status.RESOURCES,
    "OutOfMemoryError": Status.RESOURCES,
}
# of other errors, the part of the package, or the function, that raised them; the first that fits
BY_PART = {
    "layers.arguments.check_integer": Status.USAGE,
    "data": Status.DATA,
    "training.checkpoints": Status.RUN,
    "training.runs": Status.RUN,
    "training.resume": Status.RUN,
    "training.summary": Status.RUN,
    "training.history": Status.RUN,
    "training.saved": Status.MODEL,
    "training.tuning": Status.MODEL,
    "training.distillation": Status.MODEL,
    "training": Status.USAGE,
    "analysis": Status.USAGE,
    "export": Status.USAGE,
    "storage": Status.USAGE,
    "ssl.probes": Status.USAGE,
    "cli": Status.USAGE,
    "": Status.MODEL,
}
# the system lacks space, memory or handles, or does not let files be written
LACKS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM),
}


def describe_error(error: BaseException) -> tuple[str, Status]:
    """Return what to say of an error, in one paragraph, and the status to leave with.

    Errors of values and of the system say themselves what was wrong. Any other is unexpected: its type is
    named, and how its traceback can be seen.
    """
    status = _status_of(error)
    text = _text_of(error)
    if status is Status.RESOURCES and not isinstance(error, OSError):
        first = text.partition("\n")[0] or type(error).__name__
        cure = "a smaller batch_size, a smaller model, or more steps in accumulate need less"
        return f"out of memory: {first}; {cure}", status
    if status is Status.UNEXPECTED:
        kind = type(error).__name__
        return f"unexpected {kind}: {text}; {DEBUG} shows where it comes from", status
    return text, status


def _text_of(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    # without the number, which is for programs
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _status_of(error: BaseException) -> Status:
    for kind in type(error).__mro__:
        if kind.__name__ in BY_TYPE:
            return BY_TYPE[kind.__name__]
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        # torch's allocator on the CPU has no type of its own for it
        return Status.RESOURCES
    if isinstance(error, OSError) and error.errno in LACKS:
        return Status.RESOURCES
    if not isinstance(error, ValueError | OSError | ImportError) or isinstance(error, UnicodeError):
        return Status.UNEXPECTED
    part = _part_of(error)
    fitting = (
        status for prefix, status in BY_PART.items() if f"{part}.".startswith(f"{prefix}." if prefix else "")
    )
    return next(fitting)


def _part_of(error: BaseException) -> str:
    """Return the module and the function of the package, without its name, that raised an error."""
    root = Path(vit_pytorch.__file__).parent
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(path.relative_to(root), name) for path, name in frames if path.is_relative_to(root)]
    return ".".join([*own[-1][0].with_suffix("").parts, own[-1][1]]) if own else ""
