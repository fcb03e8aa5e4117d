"""`vit finetune` and `vit distill`: trainings that begin with weights, or learn from a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_pytorch.cli.aliases import ALIASES
from vit_pytorch.cli.layers import UsageError, long_options, option_value, read_layer, setting, without_option
from vit_pytorch.cli.train import asks_for_help, carry_out, model_layer, read_command, resumed_run
from vit_pytorch.cli.use import data_config
from vit_pytorch.create import comes_trained, model_folder, read_config
from vit_pytorch.data.sources import is_table, shared_columns
from vit_pytorch.registry import entries, find_entry
from vit_pytorch.trained import trained_folder
from vit_pytorch.training.config import CONFIG, PUBLISHED
from vit_pytorch.training.recipes import find_recipe
from vit_pytorch.training.saved import TASK
from vit_pytorch.weights import HUB, init_empty_weights, likely_repository

FINETUNE = {"from": "tuning.weights", "method": "tuning.method"}
DISTILL = {
    "student": "model.name",
    **{name: f"distillation.{name}" for name in ("teacher", "temperature", "alpha", "hard")},
}

# the width of the models that the recipe's learning rate is for, and how many times it narrower ones have
WIDTH = 768
MOST_TIMES = 8


def finetune(arguments: Sequence[str]) -> None:
    """Train on from weights: `--from` a run, a model folder, a weight file, or a model's name.

    All of it learns, with `--method head` the classifier alone, with `--method lora` low-rank updates, with
    `--method memory` memory tokens.
    `--image-size` may be another: positions are interpolated. Other options are those of `vit train`.
    """
    arguments = long_options(arguments, names={**ALIASES, **FINETUNE})
    resumed = resumed_run(arguments)
    weights = option_value(arguments, "tuning.weights")
    more: dict[str, dict[str, Any]] = {}
    if resumed is None:
        more = {"recipe finetune": read_layer(find_recipe("finetune"))}
    if resumed is None and not asks_for_help(arguments):
        if weights is None:
            raise UsageError("vit finetune needs --from: a run, a model folder, a file or a model's name")
        found = start_layer(weights)
        if found:
            found = with_task(found, weights, arguments)
            more[weights] = found
            arguments = without_option(arguments, "tuning.weights")
        elif option_value(arguments, "model.name") is None:
            raise UsageError(
                f"--from {weights} names no run, model folder or model; if it is a file of weights, name its "
                f"model by --model{likely_repository(weights)}"
            )
        model = found.get("model") or {"name": option_value(arguments, "model.name")}
        more["recipe finetune"]["optimizer"]["lr"] *= min(WIDTH / width_of(model), MOST_TIMES)
    carry_out(*read_command(arguments, resumed, more=more, command=finetune, own=FINETUNE), resumed)


def width_of(model: Mapping[str, Any]) -> int:
    """Return the dimension of what enters the classifier of a model, by its name and arguments."""
    with init_empty_weights():
        return (
            find_entry(model["name"]).build(**{k: v for k, v in model.items() if k != "name"}).classifier_dim
        )


def distill(arguments: Sequence[str]) -> None:
    """Train a `--student` (a model's name) from labels and from a `--teacher` (a run, or a model's name).

    Of a run the task is taken over, and the columns of its table. Other options are those of `vit train`.
    """
    arguments = long_options(arguments, names={**ALIASES, **DISTILL})
    resumed = resumed_run(arguments)
    teacher = option_value(arguments, "distillation.teacher")
    if resumed is None and teacher is None and not asks_for_help(arguments):
        raise UsageError("vit distill needs --teacher: a run, a model folder or a model's name")
    more = {}
    if resumed is None and teacher is not None:
        more[teacher] = with_task({"data": {}}, teacher, arguments)
    carry_out(*read_command(arguments, resumed, more=more, command=distill, own=DISTILL), resumed)


def with_task(layer: dict[str, Any], weights: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Add to the layer of a run what it learned, and from which columns, where a table is learned from.

    Args:
        layer: From `start_layer`.
        weights: The run, or the folder or the name of a model.
        arguments: The command line, which may ask for another task; of columns it says the last word.
    """
    file = option_value(arguments, "config")
    asked = read_layer(file) if file is not None else {}
    source, task = (option_value(arguments, name) or setting(asked, name) for name in ("data.source", "task"))
    if not Path(weights).is_dir() or not isinstance(source, str) or not is_table(source):
        return layer
    problem = read_config(model_folder(weights)).get("default_cfg", {}).get(TASK, {})
    own = problem.get("task", "classify")
    if task not in (None, own):
        return layer
    run = Path(weights)
    known = data_config(run, None).spec if (run / CONFIG).is_file() else ""
    columns = {
        "label_separator" if role == "separator" else f"{role}_column": name
        for role, name in shared_columns(known, source).items()
    }
    return {**layer, "task": own, "data": {**layer["data"], **columns}}


def start_layer(weights: str) -> dict[str, Any]:
    """Describe the model that weights belong to, and the weights, as a layer of settings.

    Returns:
        Nothing where the weights are a file, which does not name its model.

    Raises:
        ValueError: Where a folder holds a model without a name in the registry.
    """
    if Path(weights).is_dir():
        return {**model_layer(weights), "tuning": {"weights": weights}}
    if comes_trained(weights):
        return start_layer(str(trained_folder(weights)))
    name, _, tag = weights.partition(".")
    if name in entries() and not Path(weights).is_file():
        entry = entries()[name]
        published = f"{HUB}{entry.repository(tag)}" if tag else PUBLISHED
        channels = entry.config.get("channels", 3)
        return {"model": {"name": name}, "data": {"channels": channels}, "tuning": {"weights": published}}
    return {}
