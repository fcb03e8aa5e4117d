"""`vit pretrain`: learning without labels, with settings of the method and of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from vit_pytorch.cli.finetune import start_layer
from vit_pytorch.cli.layers import UsageError, drop_others, long_options, option_value, without_option
from vit_pytorch.cli.train import (
    MODEL,
    add_common,
    build_config,
    last_name,
    parse_layers,
    read_layers,
    resumed_run,
    saved_model,
    show_or_return,
    start,
)
from vit_pytorch.registry import find_entry
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.training.pretraining.config import METHODS, MethodConfig, PretrainConfig, find_method
from vit_pytorch.training.recipes import PRETRAIN, list_recipes

METHOD = "mae"
# what a recipe changes for one method, by the method's name
BY_METHOD = "methods"


def pretrain(arguments: Sequence[str]) -> None:
    """Train a model without labels: `--method` mae, simmim, mpp, mp3, dino, esvit or lejepa.

    What is left is a model that `vit finetune --from` takes. Settings come from the recipe, then `--config`,
    then the command line; the last word counts. `--method NAME --help` lists the method's own.
    """
    arguments = long_options(arguments, short=("data", "model", "method"))
    resumed = resumed_run(arguments)
    config, output = read_pretraining(arguments, resumed)
    # heavy, and not needed to find a mistake in the command line
    from vit_pytorch.training.pretraining.run import run

    start(run, config, output, resumed, name=f"{config.method.name}-{config.model['name']}")


def read_pretraining(arguments: Sequence[str], resumed: Path | None) -> tuple[PretrainConfig, Path | None]:
    """Resolve a command line.

    Args:
        arguments: Options as `long_options` gives them.
        resumed: The folder of the run to resume, whose configuration then takes the place of the file.

    Returns:
        The configuration, and the folder asked for with `--output`.

    Raises:
        UsageError: Where an option or a key does not exist or has a value of the wrong type.
        ValueError: Where values are out of range, or no model, method or recipe has the name.
        SystemExit: After what was asked for is shown.
    """
    arguments, saved = saved_model(arguments)
    weights = option_value(arguments, "weights")
    start = start_layer(weights) if weights is not None else {}
    if weights is not None and start:
        named = bool(saved) or option_value(arguments, "model.name") is not None
        place = start.pop("tuning")["weights"]
        arguments = [*without_option(arguments, "weights"), f"--weights={place}"]
        saved |= {} if named else {weights: start}
    sources, layers = read_layers(arguments, resumed, saved, kind=PRETRAIN)
    if resumed is not None and "method" not in layers[-1]:
        raise UsageError(f"{resumed} is the run of a classifier: resume it by vit train, finetune or distill")
    method = last_name(arguments, layers, "method") or METHOD
    settings = find_method(method)
    layers = [_for_method(source, layer, method) for source, layer in zip(sources, layers, strict=True)]
    name = last_name(arguments, layers, "model") or MODEL
    entry = find_entry(name)
    parser = pretrain_parser(entry, settings)
    own = {"method": "method.name"}
    own |= {
        f"method.{field.name}": f"method.{field.name}" for field in fields(settings) if field.name != "name"
    }
    parsed = parse_layers(parser, arguments, sources, drop_others(layers, name), entry, own=own)
    return show_or_return(build_config(PretrainConfig, parser, parsed, name), parsed)


def pretrain_parser(entry: ModelEntry, method: type[MethodConfig]) -> ArgumentParser:
    """Build the parser of a pretraining for one method and one named model."""
    parser = ArgumentParser(prog="vit pretrain", description=pretrain.__doc__, exit_on_error=False)
    parser.add_argument("--recipe", type=str, help=f"{', '.join(list_recipes(PRETRAIN))}, or a YAML file")
    parser.add_class_arguments(PretrainConfig, skip={"model", "method"})
    parser.add_class_arguments(method, "method")
    add_common(parser, entry)
    return parser


def _for_method(source: str, layer: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Put what a layer says for one method over the rest of it, and leave other methods out."""
    (rest,) = drop_others([layer], method, part="method")
    by_method = rest.pop(BY_METHOD, {})
    strange = [name for name in by_method if name not in METHODS]
    if strange:
        raise UsageError(f"{source}: unknown method {strange[0]!r}; known are {', '.join(METHODS)}")
    return _merged(rest, by_method.get(method, {}))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others over them, section by section."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[key] = value
    return merged
