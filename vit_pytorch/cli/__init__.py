"""The `vit` command."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from enum import IntEnum
from importlib import import_module
from importlib.util import find_spec

from vit_pytorch.cli.streams import keep_streams, lost

# command: its module, and what it does
COMMANDS = {
    "train": ("train", "train on labelled images: classes, several labels, or values"),
    "finetune": ("finetune", "train on from published weights or from another run"),
    "pretrain": ("pretrain", "train a model without labels"),
    "distill": ("finetune", "train an image classifier from labels and a teacher"),
    "evaluate": ("use", "measure a trained model on labelled images"),
    "predict": ("use", "say which class, labels or values images have"),
    "embed": ("embed", "write features of images to a file"),
    "explain": ("explain", "show what a classifier looks at, in pictures and a page"),
    "export": ("export", "export a model to another runtime, verified on images"),
    "bench": ("bench", "time models beside each other"),
    "models": ("models", "list the named models"),
}
# those whose results are in a folder, whatever becomes of standard output
TRAINING = {"train", "finetune", "pretrain", "distill"}
# those that need no extra of the package
BARE = {"models"}


DEBUG = "--debug"


class Status(IntEnum):
    """Exit statuses of the command."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    DATA = 3
    MODEL = 4
    RUN = 5
    RESOURCES = 6
    NOT_FINITE = 7
    PROCESSES = 8
    SIGHUP = 129
    CTRL_C = 130
    SIGTERM = 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command and its options; those of the process by default.

    Returns:
        The exit status; `docs/reliability.md` lists them. Training that was stopped by a signal leaves with
        `SystemExit`: 143 after SIGTERM, 130 after Ctrl-C, 129 after SIGHUP.
    """
    keep_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    shown = warnings.formatwarning
    if DEBUG not in arguments:
        warnings.formatwarning = _format_warning
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", Status.CTRL_C)
    finally:
        warnings.formatwarning = shown


def _run(arguments: list[str]) -> int:
    """Run a command; see `main`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *options = arguments
    if command == "--version":
        import vit_pytorch

        print(f"vit_pytorch {vit_pytorch.__version__}")
        return 0
    from vit_pytorch.cli.aliases import COMMAND_ANSWERS
    from vit_pytorch.cli.layers import nearest
    from vit_pytorch.cli.memory import keep_freed_memory
    from vit_pytorch.extras import OTHER, install_command, other_package

    if other := other_package():
        print(
            f"vit: warning: {OTHER} {other} is installed here, too, and has the same import name; files of "
            "one may have replaced those of the other: keep one of the two in an environment",
            file=sys.stderr,
        )

    if command not in COMMANDS:
        answer = COMMAND_ANSWERS.get(command)
        right = f"the right one is {answer}" if answer else nearest(command, COMMANDS) or "these are known:"
        return _fail(f"unknown command {command!r}; {right}\n{usage()}", Status.USAGE)
    if command not in BARE and (find_spec("jsonargparse") is None or find_spec("lightning") is None):
        return _fail(f"vit {command} needs more packages: {install_command('train')}", Status.USAGE)
    module, _ = COMMANDS[command]
    keep_freed_memory()
    try:
        run = getattr(import_module(f"vit_pytorch.cli.{module}"), command)
        run([option for option in options if option != DEBUG])
    except Exception as error:
        # heavy, and not needed where all is well
        from vit_pytorch.cli.errors import describe_error

        if DEBUG in options:
            traceback.print_exception(error)
        return _fail(*describe_error(error))
    sys.stdout.flush()
    if 1 in lost and command not in TRAINING:
        reason = lost[1].strerror
        return _fail(f"standard output is not complete: {reason}; run it again", Status.RESOURCES)
    return 0


def usage() -> str:
    """What `vit --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vit COMMAND …",
            "",
            *lines,
            "",
            "vit COMMAND --help lists a command's options; with --debug an error comes with its traceback.",
        ]
    )


def _format_warning(message: Warning | str, *where: object, **line: object) -> str:
    """Return a warning as the command says it, without the place in the source."""
    return f"vit: warning: {message}\n"


def _fail(message: str, status: Status) -> int:
    print(f"vit: error: {message}", file=sys.stderr)
    return status
