"""`vit train`: the command line of a training run, from the signatures of its settings and of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from docstring_parser import parse
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from vit_pytorch import base
from vit_pytorch.cli.aliases import ANSWERS
from vit_pytorch.cli.help import help_page
from vit_pytorch.cli.layers import (
    FITTED,
    UsageError,
    as_number,
    check_layer,
    check_options,
    drop_others,
    followed,
    keeps_batches,
    long_options,
    name_in,
    option_value,
    plain_message,
    read_layer,
    setting,
    without_option,
)
from vit_pytorch.cli.model_options import check_model_options, fold_options, own_options, upgrade_layer
from vit_pytorch.create import architectures, model_folder, read_config
from vit_pytorch.data.sizes import SMALL, holds_photographs
from vit_pytorch.data.sources import TABLE_OPTIONS, with_columns
from vit_pytorch.distill import Distillable
from vit_pytorch.memory_vit import MemoryViT
from vit_pytorch.registry import entries, find_entry
from vit_pytorch.registry.entry import ModelEntry
from vit_pytorch.training.config import CONFIG, RunConfig, TrainConfig, config_text
from vit_pytorch.training.recipes import TRAIN, default_recipe, find_recipe, list_recipes
from vit_pytorch.training.runs import check_run, latest_run

MODEL = "vit_small_patch16_224"
RUNS = "runs"
# what the data decides
DECIDED = {"num_classes", "channels"}
# options that say how to start, and are no part of the run's configuration
STARTING = ("config", "output", "resume", "recipe", "budget", "print_config")
# arguments of a model that a budget may choose, where nobody else does
SIZED = ("name", "dim", "depth", "heads", "dim_head", "mlp_dim")
COLUMNS = {f"data.{role}_column": role for role in TABLE_OPTIONS}
# options that show what there is
SHOWING = ("help", "help_all")


ConfigT = TypeVar("ConfigT", bound=RunConfig)


def train(arguments: Sequence[str]) -> None:
    """Train an image classifier; without options a small ViT on scikit-learn's digits.

    Settings come from the recipe, then `--config`, then the command line; the last word counts.
    """
    arguments = long_options(arguments, answers={**ANSWERS, "weights": ANSWERS["pretrained"]})
    resumed = resumed_run(arguments)
    carry_out(*read_command(arguments, resumed), resumed)


def carry_out(config: TrainConfig, output: Path | None, resumed: Path | None) -> Path:
    """Run what was asked for in the folder resumed, in that of `--output`, or in a new one; return it."""
    # heavy, and not needed to find a mistake in the command line
    from vit_pytorch.training.run import run

    return start(run, config, output, resumed, name=config.model["name"])


def start(
    run: Callable[..., Path], config: RunConfig, output: Path | None, resumed: Path | None, *, name: str
) -> Path:
    """Start a run, or go on with it, in its folder; a new one's name begins with date, data and `name`."""
    if resumed is not None:
        return run(config, resumed, resume=True)
    if output is not None:
        return run(config, output)
    folder = f"{date.today()}-{_short(config.data.source)}-{name}"
    return run(config, Path(RUNS) / folder, numbered=True)


def read_command(
    arguments: Sequence[str],
    resumed: Path | None,
    *,
    more: Mapping[str, dict[str, Any]] | None = None,
    command: Callable[[Sequence[str]], None] = train,
    own: Mapping[str, str] | None = None,
) -> tuple[TrainConfig, Path | None]:
    """Resolve a command line; show help, or the configuration, where that is asked for, and leave.

    Args:
        arguments: Options as `long_options` gives them.
        resumed: The folder of the run to resume, whose configuration then takes the place of recipe and file.
        more: Layers between the recipe and the configuration file, by what they come from.
        command: The command, whose name and docstring the help shows.
        own: The command's own names of options, and what they stand for.

    Returns:
        The configuration, and the folder asked for with `--output`.

    Raises:
        UsageError: Where an option or a key does not exist or has a value of the wrong type.
        ValueError: Where values are out of range, or no model or recipe has the name.
        SystemExit: After what was asked for is shown.
    """
    arguments, saved = saved_model(arguments)
    sources, layers = read_layers(arguments, resumed, {**(more or {}), **saved})
    if any("method" in layer for layer in layers):
        raise UsageError("these settings are those of a pretraining (they have a method): use vit pretrain")
    layers = fit_recipes(sources, layers, arguments)
    name = last_name(arguments, layers, "model") or MODEL
    entry = find_entry(name)
    parser = train_parser(entry, command)
    parsed = parse_layers(parser, arguments, sources, drop_others(layers, name), entry, own=own)
    config = build_config(TrainConfig, parser, parsed, name)
    if parsed.budget is not None:
        config = within_budget(config, parsed.budget, arguments, sources)
    return show_or_return(config, parsed)


def within_budget(
    config: TrainConfig,
    budget: str,
    arguments: Sequence[str],
    sources: Sequence[str],
) -> TrainConfig:
    """Choose the epochs, and the size of a recipe's model, that a time is enough for.

    Raises:
        UsageError: Where the epochs are given, too.
    """
    if option_value(arguments, "epochs") is not None:
        raise UsageError("--budget chooses the epochs: leave --epochs out")
    named = any(option_value(arguments, f"model.{name}") is not None for name in SIZED)
    plain = all(name in config.model for name in SIZED)
    recipes = {f"recipe {name}" for name in list_recipes()}
    from vit_pytorch.training.budget import fit_budget

    return fit_budget(config, budget, sized=plain and not named and recipes.issuperset(sources))


def fit_recipes(
    sources: Sequence[str], layers: Sequence[dict[str, Any]], arguments: Sequence[str]
) -> list[dict[str, Any]]:
    """Leave out of the package's recipes what is for classes, where another task is asked for."""
    task = option_value(arguments, "task") or [layer["task"] for layer in layers if "task" in layer][-1:]
    if task in ("classify", [], ["classify"]):
        return list(layers)
    own = {f"recipe {name}" for name in list_recipes()}
    return [
        {key: value for key, value in layer.items() if key != "label_smoothing" or source not in own}
        for source, layer in zip(sources, layers, strict=True)
    ]


def show_or_return(config: ConfigT, parsed: Namespace) -> tuple[ConfigT, Path | None]:
    """Return a configuration and the folder asked for; with `--print_config` show the one and leave."""
    if parsed.print_config:
        print(config_text(config), end="")
        raise SystemExit(0)
    return config, Path(parsed.output) if parsed.output else None


def last_name(arguments: Sequence[str], layers: Sequence[Mapping[str, Any]], part: str) -> str | None:
    """Return the name of the model, or method, that is asked for last, on the command line or in a layer."""
    named = [found for layer in layers if (found := name_in(layer, part)) is not None]
    return option_value(arguments, f"{part}.name") or (named[-1] if named else None)


def parse_layers(
    parser: ArgumentParser,
    arguments: Sequence[str],
    sources: Sequence[str],
    layers: Sequence[Mapping[str, Any]],
    entry: ModelEntry,
    *,
    own: Mapping[str, str] | None = None,
) -> Namespace:
    """Parse a command line over layers of settings for a model, the lowest first, every key checked.

    Raises:
        UsageError: Where an option or a key does not exist or has a value of the wrong type.
        SystemExit: After help, where it is asked for; it shows the defaults that the layers give.
    """
    layers = [upgrade_layer(layer, entry) for layer in layers]
    arguments = fold_options(own_options(arguments, entry), layers, entry)
    defaults = dict(parser.get_defaults().items())
    known = {*defaults.keys(), *SHOWING}
    check_options(arguments, known)
    for source, layer in zip(sources, layers, strict=True):
        check_layer(layer, known - {*STARTING, *SHOWING}, source)
        check_model_options(layer.get("model", {}), entry, source)
        _set_defaults(parser, layer, source)
    parser.set_defaults(followed(layers, arguments, defaults))
    if keeps_batches(layers, arguments):
        parser.set_defaults({FITTED: None})
    if "--help" in arguments:
        print(help_page(parser, {action.dest: action.help for action in parser._actions}, own or {}))
        raise SystemExit(0)
    # the library takes an option of this name for its own
    parser.set_defaults(print_config="--print_config" in arguments)
    arguments = [argument for argument in arguments if argument != "--print_config"]
    try:
        parsed = parser.parse_args(["--help" if one == "--help_all" else one for one in arguments])
    except ArgumentError as error:
        cure = "; data are named by --data" * ("unrecognized arguments" in str(error))
        raise UsageError(plain_message(error) + cure) from error
    check_model_options(vars(parsed.model), entry, "command line")
    return parsed


def train_parser(entry: ModelEntry, command: Callable[[Sequence[str]], None] = train) -> ArgumentParser:
    """Build the parser of a training for one named model, whose arguments have that model's defaults."""
    parser = ArgumentParser(prog=f"vit {command.__name__}", description=command.__doc__, exit_on_error=False)
    parser.add_argument("--recipe", type=str, help=f"{', '.join(list_recipes())}, or a YAML file")
    parser.add_class_arguments(TrainConfig, skip={"model"})
    parser.add_argument(
        "--budget",
        type=str,
        help="time that the run may take, such as 10m. Its epochs, and the size of a recipe's model, are "
        "chosen by what is measured before it begins",
    )
    add_common(parser, entry)
    return parser


def add_common(parser: ArgumentParser, entry: ModelEntry) -> None:
    """Add what says how to start a run, and the arguments of its model."""
    parser.add_argument("--config", type=str, help="YAML file of settings, such as another run's config.yaml")
    parser.add_argument("--output", type=str, help="folder of the run; a new one in runs/ by itself")
    parser.add_argument(
        "--resume", type=str, nargs="?", help="go on with a run, the latest in runs/ by itself"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print what would be run, as YAML for --config, and leave"
    )
    parser.add_argument(
        "--model.name",
        type=str,
        default=entry.name,
        help="see `vit models`; or a run or a model folder, whose architecture is taken",
    )
    parser.add_class_arguments(entry.architecture, "model", skip=DECIDED, instantiate=False)
    describe_model(parser, entry)
    config = {f"model.{key}": value for key, value in entry.config.items() if key not in DECIDED}
    parser.set_defaults(config)


def describe_model(parser: ArgumentParser, entry: ModelEntry) -> None:
    """Describe the arguments that all models share, which the docstring of `base` explains."""
    own = {parameter.arg_name for parameter in parse(entry.architecture.__doc__ or "").params}
    shared = {f"model.{each.arg_name}": each.description for each in parse(base.__doc__ or "").params}
    for action in parser._actions:
        if action.dest in shared and action.dest.removeprefix("model.") not in own:
            action.help = shared[action.dest]


def saved_model(arguments: Sequence[str]) -> tuple[Sequence[str], dict[str, Any]]:
    """Take the architecture from the folder that `--model` names, where it names one.

    Returns:
        The other options, and the folder's settings by its name.
    """
    chosen = option_value(arguments, "model.name")
    if chosen is None or chosen in entries() or not Path(chosen).is_dir():
        return arguments, {}
    return without_option(arguments, "model.name"), {chosen: model_layer(chosen)}


def model_layer(folder: str) -> dict[str, Any]:
    """Describe the architecture of a saved model, or of a run's, as a layer of settings.

    Of a distilled model the plain one is described. Weights are not read.

    Raises:
        FileNotFoundError: Where there is no model.
        ValueError: Where it has no name in the registry, or its memories belong to one task.
    """
    config = read_config(model_folder(folder))
    architecture = architectures()[config.pop("architecture")]
    name = config.pop("default_cfg", {}).get("architecture")
    if issubclass(architecture, MemoryViT):
        raise ValueError(f"{folder} holds a {name} under the memory of one task; name what it started from")
    if name not in entries():
        raise ValueError(f"{folder} holds a {architecture.__name__} that has no name in the registry")
    if issubclass(architecture, Distillable):
        config = architecture.plain_config(config)
    arguments = {key: value for key, value in config.items() if key not in DECIDED}
    return {"model": {"name": name, **arguments}, "data": {"channels": config.get("channels", 3)}}


def resumed_run(arguments: Sequence[str]) -> Path | None:
    """Find the run that `--resume` asks for; None where it does not ask.

    Raises:
        FileNotFoundError: Where there is no such run, or none at all.
        UsageError: Where other options name another run, or other settings to begin with.
    """
    if asks_for_help(arguments):
        return None
    if not any(argument.partition("=")[0] == "--resume" for argument in arguments):
        return None
    resumed, output = option_value(arguments, "resume"), option_value(arguments, "output")
    beside = [name for name in ("config", "recipe", "budget") if option_value(arguments, name) is not None]
    beside += ["output"] if resumed is not None and output is not None else []
    if beside:
        raise UsageError(
            f"a run that is resumed has its own folder and settings: leave --{' and --'.join(beside)} out"
        )
    folder = Path(resumed or output or latest_run(RUNS))
    check_run(folder)
    return folder


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether a command line asks for help, whatever else it says."""
    return any(f"--{option}" in arguments for option in SHOWING)


def read_layers(
    arguments: Sequence[str],
    resumed: Path | None,
    more: Mapping[str, dict[str, Any]],
    *,
    kind: str = TRAIN,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Sources and contents of the layers under the command line, the lowest first; recipes of a kind."""
    file = str(resumed / CONFIG) if resumed is not None else option_value(arguments, "config")
    layer = read_layer(file) if file is not None else None
    recipe = option_value(arguments, "recipe")
    if recipe is None:
        recipe = (layer or {}).get("recipe")
    if recipe is None:
        told = {
            name: option_value(arguments, name) or setting(layer or {}, name)
            for name in ("data.source", "model.image_size", "model.name", "model.patch_size", *COLUMNS)
        }
        source = told["data.source"] if isinstance(told["data.source"], str) else "digits"
        small = told["model.image_size"] is not None and not as_number(told["model.image_size"]) > SMALL
        named = more or told["model.name"] or told["model.patch_size"]
        spec = with_columns(source, {role: told[name] for name, role in COLUMNS.items()})
        looked_at = not (small or named or asks_for_help(arguments))
        recipe = default_recipe(source, photographs=looked_at and holds_photographs(spec))
    sources, layers = _read_recipe(recipe, kind)
    if more:
        # what the weights belong to decides the model
        layers = [{key: value for key, value in each.items() if key != "model"} for each in layers]
    sources, layers = [*sources, *more], [*layers, *more.values()]
    if resumed is not None and kind == TRAIN and layer is not None:
        # runs of version 0.1 know no other choice
        layer.setdefault("select", "loss")
    if layer is not None:
        layer.pop("recipe", None)
        sources.append(str(file))
        layers.append(layer)
    return sources, layers


def _read_recipe(recipe: str, kind: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Read a recipe, and those that it lies over: its own `recipe`, and so on; the lowest first."""
    names: list[str] = []
    layers: list[dict[str, Any]] = []
    below: str | None = recipe
    while below is not None:
        if below in names:
            raise ValueError(f"recipe {below} lies over itself: {' over '.join([*names, below])}")
        names.append(below)
        layers.append(read_layer(find_recipe(below, kind)))
        below = layers[-1].pop("recipe", None)
    return [f"recipe {name}" for name in reversed(names)], layers[::-1]


def _set_defaults(parser: ArgumentParser, layer: Mapping[str, Any], source: str) -> None:
    try:
        parsed = parser.parse_object(dict(layer))
    except ArgumentError as error:
        raise UsageError(f"{source}: {plain_message(error)}") from error
    known = set(parser.get_defaults().keys())
    parser.set_defaults({key: parsed[key] for key in _leaves(layer, known)})


def _leaves(layer: Mapping[str, Any], known: set[str], prefix: str = "") -> list[str]:
    keys = []
    for key, value in layer.items():
        name = f"{prefix}{key}"
        keys += [name] if name in known else _leaves(value, known, f"{name}.")
    return keys


def build_config(
    config: Callable[..., ConfigT], parser: ArgumentParser, parsed: Namespace, name: str
) -> ConfigT:
    """Build a run's configuration from what was parsed.

    Raises:
        UsageError: Where a value is out of range.
    """
    model = {"name": name, **{key: value for key, value in vars(parsed.model).items() if key != "name"}}
    try:
        settings = vars(parser.instantiate(parsed))
        rest = {key: value for key, value in settings.items() if key not in (*STARTING, "model")}
        return config(model=model, **rest)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _short(source: str) -> str:
    """A data source as a part of a folder's name."""
    tail = source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in tail)[:40] or "data"
