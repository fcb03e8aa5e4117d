"""Settings in layers: the recipe, then the configuration file, then the command line; each key checked."""

import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from glob import glob
from pathlib import Path
from typing import Any

import yaml

from vit_pytorch.cli.aliases import ALIASES, ANSWERS

# `--data digits` and `data: digits` are short for these
SHORT = {"data": "source", "model": "name", "method": "name", "loss": "name"}
# how values of types are written, by the last part of the type's name
_LIST = "a list in brackets such as [1,2]"
KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "dict": "a mapping",
    "tuple": _LIST,
    "list": _LIST,
    "Sequence": _LIST,
}
# options that mean `true` without a value
FLAGS = {"compile", "with_preprocessing", "tta", "calibrated"}
# settings that keep their share of another one, where a higher layer changes that one alone
FOLLOWERS = {"schedule.warmup_epochs": "epochs", "schedule.min_lr": "optimizer.lr"}
# a batch size, and what makes it smaller where images are few
BATCH, FITTED = "batch_size", "min_steps_per_epoch"
# how alike words must be, for one to be proposed for the other: 1 where they are equal
CLOSE = 0.7


class UsageError(ValueError):
    """The command line or a configuration file asks for what does not exist."""


def long_options(
    arguments: Sequence[str],
    short: Container[str] = ("data", "model", "loss"),
    names: Mapping[str, str] = ALIASES,
    answers: Mapping[str, str] = ANSWERS,
) -> list[str]:
    """Write options as the parser knows them: underscores for dashes, `--model.name` for `--model`.

    Args:
        arguments: A command line.
        short: Which of the options in `SHORT` are written out.
        names: Other names of options, and what they stand for.
        answers: Names that have another meaning elsewhere, and what to take instead.

    Raises:
        UsageError: Where such a name is given; says what to take instead. Where a value is empty, or an
            option has no dashes (`epochs=3`).
    """
    result = []
    for before, argument, following in zip(["", *arguments], arguments, [*arguments[1:], "--"], strict=False):
        name, equals, value = argument.partition("=")
        is_value = before.startswith("-") and "=" not in before
        is_file = Path(argument).exists() or glob(argument, recursive=True)
        if equals and name.isidentifier() and not is_value and not is_file:
            right = f"the right one is {answers[name]}" if name in answers else f"write --{name} {value}"
            raise UsageError(f"{argument} is neither an option nor a file; {right}")
        letter = re.fullmatch(r"-([a-z])=?(\d*)", argument)
        if letter and letter[1] in names:
            argument = f"--{letter[1]}" + f"={letter[2]}" * bool(letter[2])
        if argument.startswith("--"):
            typed, equals, value = argument[2:].partition("=")
            if not (value if equals else following):
                # a variable of the shell that is not set, as a rule; as a path it would be this folder
                raise UsageError(f"--{typed} must not be empty")
            key = typed.replace("-", "_")
            if key in answers:
                raise UsageError(f"--{typed} is no option here; the right one is {answers[key]}")
            key = f"{key}.{SHORT[key]}" if key in short else names.get(key, key)
            bare = key in FLAGS and not equals and following.startswith("-")
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


class _Loader(yaml.SafeLoader):
    """Reads YAML in which no key of a mapping stands twice: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            where = node.start_mark
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands twice", where)
        return super().construct_mapping(node, deep)


def read_layer(path: str | Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        UsageError: Where it is missing, is not YAML, holds no mapping, or a key stands twice.
    """
    try:
        layer = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the configuration {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UsageError(
            f"the configuration {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(layer, dict):
        raise UsageError(
            f"the configuration {path} must be a mapping of settings, got {type(layer).__name__}"
        )
    layer = _with_underscores(layer)
    return {
        key: {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value
        for key, value in layer.items()
    }


def _with_underscores(settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """Write dashes in names of settings as underscores."""
    return {
        key.replace("-", "_") if isinstance(key, str) else key: (
            _with_underscores(value) if isinstance(value, Mapping) else value
        )
        for key, value in settings.items()
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


def followed(
    layers: Sequence[Mapping[str, Any]], arguments: Sequence[str], defaults: Mapping[str, Any]
) -> dict[str, float]:
    """Return settings that follow another one, which a higher layer than theirs has changed.

    A warm-up keeps its share of the epochs, and is not prolonged; the last learning rate keeps its share of
    the highest one. What is set in the same layer, or above, stands as it is.

    Args:
        layers: Layers of settings, the lowest first.
        arguments: The command line, which lies over them.
        defaults: What lies under them.
    """
    found: dict[str, float] = {}
    for part, whole in FOLLOWERS.items():
        value, base, now = defaults[part], defaults[whole], defaults[whole]
        typed = {name: option_value(arguments, name) for name in (part, whole)}
        for layer in [*layers, typed]:
            now = now if (found_whole := setting(layer, whole)) is None else found_whole
            if (found_part := setting(layer, part)) is not None:
                value, base = found_part, now
        amount, before, after = map(as_number, (value, base, now))
        # what is no number, or out of range, is reported where it is read
        if before != after and all(0 < number < math.inf for number in (amount, before, after)):
            factor = after / before if whole != "epochs" else min(1.0, after / before)
            found[part] = float(f"{amount * factor:.12g}")
    return found


def keeps_batches(layers: Sequence[Mapping[str, Any]], arguments: Sequence[str]) -> bool:
    """Return whether a batch size was chosen over the layer that would fit it to the number of images.

    Args:
        layers: Layers of settings, the lowest first.
        arguments: The command line, which lies over them.
    """
    typed = {name: option_value(arguments, name) for name in (BATCH, FITTED)}
    said = [(setting(layer, BATCH), setting(layer, FITTED)) for layer in [*layers, typed]]
    last = [fitted for size, fitted in said if size is not None or fitted is not None][-1:]
    return last == [None]


def setting(layer: Mapping[str, Any], name: str) -> Any:
    """Return what a layer says of a setting; None where it says nothing."""
    first, _, rest = name.partition(".")
    if name in layer or not rest:
        return layer.get(name)
    return setting(layer[first], rest) if isinstance(layer.get(first), Mapping) else None


def as_number(value: Any) -> float:
    """Return a value, or a text, as a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


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
            right = f"the right one is {ALIASES[key]!r}" if ALIASES.get(key) in known else nearest(key, known)
            right = right or "`vit train --help-all` lists them"
            raise UsageError(f"{source}: unknown setting {key!r}; {right}")


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
            help_option = "--help-all" if "help_all" in known else "--help"
            raise UsageError(f"unknown option {option!r}; {close or f'{help_option} lists all of them'}")


def nearest(key: str, known: Iterable[str], *, dashes: bool = False) -> str:
    """Say which known key is closest to an unknown one; nothing where none is close."""
    known = list(known)
    by_last_part = {name.rpartition(".")[2]: name for name in reversed(known)}
    last = key.rpartition(".")[2]
    close = [by_last_part[last]] if last in by_last_part else get_close_matches(key, known, n=1, cutoff=CLOSE)
    close = close or [by_last_part[name] for name in get_close_matches(last, by_last_part, n=1, cutoff=CLOSE)]
    mark = "--" if dashes else ""
    return f"the nearest one is {f'{mark}{close[0]}'!r}" if close else ""


def plain_message(error: Exception) -> str:
    """Write an error of the parser in one line, the key in front, types as users write their values."""
    line = re.sub(r'^Parser key "([^"]+)":', r"\1:", " ".join(str(error).split()))
    several = re.search(r": Does not validate .*? Subtypes: \[(.*)\] Errors: .* Given value: (.*)$", line)
    one = re.search(r": Expected a (<class '[\w.]+'>|typing\.Literal\[[^\]]*\])\. Got value: (.*)$", line)
    found = several or one
    if found is None:
        return line
    kinds = [_kind_of_value(name) for name in re.findall(r"<class '[\w.]+'>|[\w.]+(?:\[[^\]]*\])?", found[1])]
    return f"{line[: found.start()]} must be {' or '.join(dict.fromkeys(kinds))}, got {found[2]}"


def _kind_of_value(name: str) -> str:
    """Return how a value of a type is written, by the type's name in messages of the parser."""
    if name.startswith("typing.Literal["):
        choices = re.findall(r"'[^']*'|[^\s,']+", name.removeprefix("typing.Literal[").removesuffix("]"))
        return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    kind = re.sub(r"^<class '|'>$|\[.*", "", name).rpartition(".")[2]
    return KINDS.get(kind, name)
