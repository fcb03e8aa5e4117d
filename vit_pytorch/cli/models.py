"""`vit models`: the named models. It needs the package alone, without its extras."""

from argparse import ArgumentParser
from collections.abc import Sequence

from vit_pytorch.cli.tables import print_json, table
from vit_pytorch.registry import entries, list_models


def models(arguments: Sequence[str]) -> None:
    """Parse the options of `vit models` and run it."""
    parser = ArgumentParser(prog="vit models", description=(print_models.__doc__ or "").partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="*", help="wildcard, or a part of the names")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of a table")
    print_models(**vars(parser.parse_args(arguments)))


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
        print_json(rows)
        return
    shown = [
        [row["name"], row["architecture"], f"{row['parameters']:,}", str(row["input_size"])] for row in rows
    ]
    print(table(["name", "architecture", "parameters", "input"], shown, right=(2, 3)))
