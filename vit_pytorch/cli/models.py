"""`vit models`: the named models."""

import json
from collections.abc import Sequence

from vit_pytorch.cli.functions import call
from vit_pytorch.cli.tables import table
from vit_pytorch.registry import entries, list_models


def models(arguments: Sequence[str]) -> None:
    """Parse the options of `vit models` and run it."""
    call(print_models, "models", arguments, positional=["pattern"])


def print_models(pattern: str = "*", as_json: bool = False) -> None:
    """List the named models: architecture, parameters with 1000 classes, input size.

    Args:
        pattern: Shell-style wildcard, or a part of the names.
        as_json: Print JSON instead of a table.

    Raises:
        ValueError: Where no name matches.
    """
    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        raise ValueError(f"no model's name matches {pattern!r}; `vit models` lists all of them")
    rows = [
        {
            "name": name,
            "architecture": entry.architecture.__name__,
            "parameters": entry.parameters,
            "input_size": entry.image_size,
        }
        for name, entry in ((name, entries()[name]) for name in names)
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    shown = [
        [row["name"], row["architecture"], f"{row['parameters']:,}", str(row["input_size"])] for row in rows
    ]
    print(table(["name", "architecture", "parameters", "input"], shown, right=(2, 3)))
