"""Commands that are one function: its parameters are the options, its docstring the help."""

import inspect
from collections.abc import Callable, Sequence

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser

from vit_pytorch.cli.aliases import ALIASES, OF_SEVERAL, USE_ALIASES, USE_ANSWERS
from vit_pytorch.cli.layers import UsageError, check_options, long_options, option_value, plain_message

JSON = "as_json"


def call(
    function: Callable[..., None],
    command: str,
    arguments: Sequence[str],
    *,
    positional: Sequence[str],
    several: str | None = None,
) -> None:
    """Call a function with what a command line says.

    Args:
        function: Its parameter `as_json` becomes the flag `--json`.
        command: Name of the command, for messages.
        arguments: The command line.
        positional: Parameters that are given without their names, in this order.
        several: Which of those takes one value or more; the last.

    Raises:
        UsageError: Where an option does not exist, lacks, or has a value of the wrong type.
    """
    text = parse(function.__doc__ or "")
    help_of = {parameter.arg_name: parameter.description for parameter in text.params}
    parser = ArgumentParser(prog=f"vit {command}", description=text.short_description, exit_on_error=False)
    for name in positional:
        default = inspect.signature(function).parameters[name].default
        if name == several:
            parser.add_argument(name, type=str, nargs="+", help=help_of[name])
        elif default is inspect.Parameter.empty:
            parser.add_argument(name, type=str, help=help_of[name])
        else:
            parser.add_argument(name, type=str, nargs="?", default=default, help=help_of[name])
    parser.add_function_arguments(function, as_group=False, skip={*positional, JSON})
    parser.add_argument("--json", dest=JSON, action="store_true", help=help_of[JSON])
    known = {*parser.get_defaults().keys(), "json", "help"} - {JSON, *positional}
    stand_for = {alias: name.removesuffix(".source") for alias, name in {**ALIASES, **USE_ALIASES}.items()}
    names = {alias: name for alias, name in stand_for.items() if name in known and alias not in known}
    several_words = {} if several is None else dict.fromkeys(("source", several), OF_SEVERAL)
    answers = {
        word: answer
        for word, answer in {**USE_ANSWERS, **several_words}.items()
        if {word, names.get(word)}.isdisjoint(known)
        and (not answer.startswith("--") or answer.split()[0][2:] in known)
    }
    options = long_options(arguments, short=(), names=names, answers=answers)
    check_options(options, known)
    required = [
        f"--{name}"
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in positional
    ]
    lacking = [option for option in required if option_value(options, option[2:]) is None]
    if lacking and not {"--help", "-h"}.intersection(options):
        raise UsageError(f"vit {command} needs {' and '.join(lacking)}")
    try:
        parsed = parser.parse_args(options)
    except ArgumentError as error:
        raise UsageError(plain_message(error)) from error
    function(**vars(parsed))
