"""The `vit` command."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

# command: its module, and what it does
COMMANDS = {
    "train": ("train", "train an image classifier"),
    "finetune": ("finetune", "train on from published weights or from another run"),
    "pretrain": ("pretrain", "train a model without labels"),
    "distill": ("finetune", "train an image classifier from labels and a teacher"),
    "evaluate": ("use", "measure a trained classifier on labelled images"),
    "predict": ("use", "classify images"),
    "explain": ("explain", "show what a classifier looks at, in pictures and a page"),
    "models": ("models", "list the named models"),
}
# those that need no extra of the package
BARE = {"models"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command and its options; those of the process by default.

    Returns:
        The exit status: 0, 1 for an error, 2 for wrong usage. Training that was stopped by a signal leaves
        with `SystemExit`: 143 after SIGTERM, 130 after Ctrl-C; so does `vit predict`: 3 where it could not
        read some of the files.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *options = arguments
    if command == "--version":
        import vit_pytorch

        print(f"vit_pytorch {vit_pytorch.__version__}")
        return 0
    from vit_pytorch.cli.layers import UsageError, nearest
    from vit_pytorch.cli.memory import keep_freed_memory

    if command not in COMMANDS:
        return _fail(f"unknown command {command!r}; {nearest(command, COMMANDS)}\n{usage()}", 2)
    if command not in BARE and (find_spec("jsonargparse") is None or find_spec("lightning") is None):
        return _fail(f"vit {command} needs more packages: pip install 'vit-pytorch[train]'", 1)
    module, _ = COMMANDS[command]
    keep_freed_memory()
    try:
        getattr(import_module(f"vit_pytorch.cli.{module}"), command)(options)
    except UsageError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # the reader, such as `head`, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except (ValueError, OSError) as error:
        return _fail(str(error), 1)
    except Exception as error:
        if isinstance(error, _own_errors()):
            return _fail(str(error), 1)
        raise
    return 0


def usage() -> str:
    """What `vit --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: vit COMMAND …", "", *lines, "", "vit COMMAND --help lists a command's options."]
    )


def _own_errors() -> tuple[type[Exception], ...]:
    """Errors that say all there is to know about what went wrong; others come with a traceback."""
    from vit_pytorch.training.checkpoints import CheckpointError
    from vit_pytorch.training.data import BadImageError
    from vit_pytorch.training.nan_guard import NonFiniteError

    return CheckpointError, BadImageError, NonFiniteError


def _fail(message: str, status: int) -> int:
    print(f"vit: error: {message}", file=sys.stderr)
    return status
