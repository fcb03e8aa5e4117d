"""`vit pretrain`: learning without labels, with settings of the method and of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from vit_pytorch.cli.layers import UsageError, drop_others, long_options
from vit_pytorch.cli.train import (
    MODEL,
    add_common,
    last_name,
    parse_layers,
    read_layers,
    resumed_run,
    settings_of,
    start,
)
from vit_pytorch.registry import find_entry
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.training.pretraining.config import METHODS, MethodConfig, PretrainConfig, find_method
from vit_pytorch.training.recipes import PRETRAIN

METHOD = "mae"
# what a recipe changes for one method, by the method's name
BY_METHOD = "methods"


def pretrain(arguments: Sequence[str]) -> None:
    """Train a model without labels: `--method` mae, simmim, mpp, mp3, dino or esvit.

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
    """
    sources, layers = read_layers(arguments, resumed, {}, kind=PRETRAIN)
    if resumed is not None and "method" not in layers[-1]:
        raise UsageError(f"{resumed} is the run of a classifier: resume it by vit train, finetune or distill")
    method = last_name(arguments, layers, "method") or METHOD
    settings = find_method(method)
    sources, layers = _for_method(sources, layers, method)
    name = last_name(arguments, layers, "model") or MODEL
    entry = find_entry(name)
    parser = pretrain_parser(entry, settings)
    layers = drop_others(drop_others(layers, name), method, part="method")
    parsed = parse_layers(parser, arguments, sources, layers, entry)
    config = PretrainConfig(**settings_of(parser, parsed, name))
    return config, Path(parsed.output) if parsed.output else None


def pretrain_parser(entry: ModelEntry, method: type[MethodConfig]) -> ArgumentParser:
    """Build the parser of a pretraining for one method and one named model."""
    parser = ArgumentParser(prog="vit pretrain", description=pretrain.__doc__, exit_on_error=False)
    parser.add_argument("--recipe", type=str, help="digits, light, mae, dino, or a YAML file")
    parser.add_class_arguments(PretrainConfig, skip={"model", "method"})
    parser.add_class_arguments(method, "method")
    add_common(parser, entry)
    return parser


def _for_method(
    sources: Sequence[str], layers: Sequence[dict[str, Any]], method: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Put what a layer says for one method over the rest of it, and leave other methods out."""
    found_sources: list[str] = []
    found: list[dict[str, Any]] = []
    for source, layer in zip(sources, layers, strict=True):
        rest = {key: value for key, value in layer.items() if key != BY_METHOD}
        by_method = layer.get(BY_METHOD, {})
        strange = [name for name in by_method if name not in METHODS]
        if strange:
            raise UsageError(f"{source}: unknown method {strange[0]!r}; known are {', '.join(METHODS)}")
        found_sources += [source, f"{source} for {method}"]
        found += [rest, by_method.get(method, {})]
    return found_sources, found
