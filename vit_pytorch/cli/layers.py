"""Settings in layers: the recipe, then the configuration file, then the command line; each key checked."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

# `--data digits` and `data: digits` are short for these
SHORT = {"data": "source", "model": "name", "method": "name"}
# options that mean `true` without a value
FLAGS = {"compile", "with_preprocessing"}


class UsageError(ValueError):
    """The command line or a configuration file asks for what does not exist."""


def long_options(
    arguments: Sequence[str],
    short: Container[str] = ("data", "model"),
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Write options as the parser knows them: underscores for dashes, `--model.name` for `--model`.

    Args:
        arguments: A command line.
        short: Which of the options in `SHORT` are written out.
        names: A command's own names of options, and what they stand for.
    """
    result = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        if argument.startswith("--"):
            key, equals, value = argument[2:].partition("=")
            key = key.replace("-", "_")
            key = f"{key}.{SHORT[key]}" if key in short else (names or {}).get(key, key)
            bare = key in FLAGS and not equals and following.startswith("--")
            argument = f"--{key}=true" if bare else f"--{key}{equals}{value}"
        result.append(argument)
    return result


def option_value(arguments: Sequence[str], option: str) -> str | None:
    """Return the last value of an option on a command line, before any parsing; None where it is absent."""
    value = None
    for i, argument in enumerate(arguments):
        if argument.startswith(f"--{option}="):
            value = argument.partition("=")[2]
        elif argument == f"--{option}" and i + 1 < len(arguments) and not arguments[i + 1].startswith("--"):
            value = arguments[i + 1]
    return value


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """Leave an option and its value out of a command line."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == f"--{option}":
            skip = True
        elif not argument.startswith(f"--{option}="):
            kept.append(argument)
    return kept


def read_layer(path: str | Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        UsageError: Where it is missing, is not YAML, or holds no mapping.
    """
    try:
        layer = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"the configuration {path} is not YAML: {error}") from error
    if not isinstance(layer, dict):
        raise UsageError(
            f"the configuration {path} must be a mapping of settings, got {type(layer).__name__}"
        )
    return {
        key: {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value
        for key, value in layer.items()
    }


def drop_others(
    layers: Sequence[Mapping[str, Any]], name: str, *, part: str = "model"
) -> list[dict[str, Any]]:
    """Leave out what a layer says about the arguments of another model, or method, than the one wanted."""
    return [
        {key: value for key, value in layer.items() if key != part or name_in(layer, part) in (None, name)}
        for layer in layers
    ]


def name_in(layer: Mapping[str, Any], part: str = "model") -> str | None:
    """Return the name of the model, or method, that a layer asks for; None where it names none."""
    settings = layer.get(part)
    name = settings.get("name") if isinstance(settings, Mapping) else None
    return name if isinstance(name, str) else None


def check_layer(layer: Mapping[str, Any], known: Iterable[str], source: str | Path) -> None:
    """Check that every key of a configuration file exists.

    Raises:
        UsageError: Naming the key and the nearest one that exists.
    """
    known = sorted(known)
    for key, value in _walk(layer, set(known)):
        members = [name for name in known if name.startswith(f"{key}.")]
        if members and not isinstance(value, Mapping):
            shown = ", ".join(name.partition(f"{key}.")[2] for name in members)
            raise UsageError(f"{source}: {key} takes settings of its own ({shown}), got {value!r}")
        if key not in known and not members:
            raise UsageError(f"{source}: unknown setting {key!r}; {nearest(key, known)}")


def _walk(layer: Mapping[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in layer.items():
        name = f"{prefix}{key}"
        yield name, value
        if name not in known and isinstance(value, Mapping):
            yield from _walk(value, known, f"{name}.")


def check_options(arguments: Sequence[str], known: Iterable[str]) -> None:
    """Check that every option of a command line exists.

    Raises:
        UsageError: Naming the option and the nearest one that exists.
    """
    known = sorted(known)
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and len(option) > 2 and option[2:] not in known:
            short = [name for name, full in SHORT.items() if f"{name}.{full}" in known]
            close = nearest(option[2:], [*short, *known], dashes=True)
            raise UsageError(f"unknown option {option!r}; {close}")


def nearest(key: str, known: Iterable[str], *, dashes: bool = False) -> str:
    """Say which known key is closest to an unknown one."""
    known = list(known)
    by_last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    if not close:
        close = [
            by_last_part[last]
            for last in get_close_matches(key.rpartition(".")[2], by_last_part, n=1, cutoff=0.0)
        ]
    mark = "--" if dashes else ""
    return f"the nearest one is {f'{mark}{close[0]}'!r}"


def plain_message(error: Exception) -> str:
    """Write an error of the parser in one line, the key in front."""
    return re.sub(r'^Parser key "([^"]+)":', r"\1:", " ".join(str(error).split()))
