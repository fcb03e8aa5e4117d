"""Options of a model that have settings of their own, on the command line and in configuration files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vit_pytorch.cli.layers import UsageError, option_value, without_option
from vit_pytorch.layers.options import read_option
from vit_pytorch.legacy import FLAT_OPTIONS, parts_of
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.registry.words import own_name


def upgrade_layer(layer: Mapping[str, Any], entry: ModelEntry) -> dict[str, Any]:
    """Return a layer of settings whose model has the arguments of version 0.1 in their new form.

    Raises:
        UsageError: if a setting does not go with its option.
    """
    model = layer.get("model")
    if not isinstance(model, Mapping):
        return dict(layer)
    try:
        return {**layer, "model": entry.upgrade(model)}
    except ValueError as error:
        raise UsageError(f"model: {error}") from error


def own_options(arguments: Sequence[str], entry: ModelEntry) -> list[str]:
    """Return a command line in which a model's arguments have the names that its class gives them.

    Another model's word for the same, such as `--model.image_size` for `--model.img_size`, is understood.
    """
    known = entry.architecture._hub_mixin_init_parameters
    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        prefix, dot, name = option.partition(".")
        if prefix == "--model" and dot:
            option = f"--model.{own_name(name, known)}"
        found.append(f"{option}{equals}{value}")
    return found


def check_model_options(model: Mapping[str, Any], entry: ModelEntry, source: str) -> None:
    """Check the model's options that have settings of their own.

    Args:
        model: settings of the model.
        entry: the model.
        source: where the settings come from, for the error.

    Raises:
        UsageError: if a kind or a setting is unknown.
    """
    for option, kinds in entry.architecture.option_kinds.items():
        value = model.get(option)
        if isinstance(value, (str, Mapping)) or (isinstance(value, list) and "learned" in kinds):
            try:
                for part in parts_of(value, next(iter(kinds))):
                    read_option(option, part, kinds)
            except ValueError as error:
                raise UsageError(f"{source}: model.{option}: {error}") from error


def fold_options(
    arguments: Sequence[str], layers: Sequence[Mapping[str, Any]], entry: ModelEntry
) -> list[str]:
    """Return a command line in which settings of the model's options are part of the options.

    `--model.positions rope --model.positions.theta 50` becomes one mapping; so do the flat names of version
    0.1, such as `--model.rope_theta 50`, with a `FutureWarning`.

    Args:
        arguments: a command line.
        layers: layers of settings under it, the lowest first.
        entry: the model.

    Raises:
        UsageError: if a setting does not go with its option.
    """
    kinds = entry.architecture.option_kinds
    flat = {f"model.{old.name}": old for old in FLAT_OPTIONS if old.option in kinds}
    given = dict.fromkeys(argument.partition("=")[0].removeprefix("--") for argument in arguments)
    for name in given:
        part, _, setting = name.removeprefix("model.").partition(".")
        nested = name.startswith("model.") and setting and part in kinds
        if not nested and name not in flat:
            continue
        text = option_value(arguments, name)
        value = yaml.safe_load("true" if text is None else text)
        option = flat[name].option if name in flat else part
        current = _current(option, arguments, layers, entry)
        try:
            if name in flat:
                current = flat[name].apply(current, value)
            else:
                current = _with_setting(option, current, setting, value, kinds[option])
        except ValueError as error:
            raise UsageError(f"--{name}: {error}") from error
        arguments = without_option(without_option(arguments, name), f"model.{option}")
        arguments = [*arguments, f"--model.{option}={json.dumps(current)}"]
        if name in flat:
            message = f"--{name} has a new form: --model.{option}.{flat[name].setting}"
            warnings.warn(message, FutureWarning, stacklevel=2)
    return list(arguments)


def _current(
    option: str, arguments: Sequence[str], layers: Sequence[Mapping[str, Any]], entry: ModelEntry
) -> Any:
    """Return an option as it stands so far."""
    text = option_value(arguments, f"model.{option}")
    if text is not None:
        return yaml.safe_load(text)
    for layer in reversed(layers):
        if option in layer.get("model", {}):
            return layer["model"][option]
    return entry.config.get(option, entry.architecture._hub_mixin_init_parameters[option].default)


def _with_setting(option: str, current: Any, setting: str, value: Any, kinds: Mapping[str, Any]) -> Any:
    """Return an option with a setting of the part that has it."""
    parts = parts_of(current, next(iter(kinds)))
    errors = []
    for part in parts:
        try:
            read_option(option, {**part, setting: value}, kinds)
        except ValueError as error:
            errors.append(error)
            continue
        part[setting] = value
        return parts[0] if len(parts) == 1 else parts
    raise errors[0]
