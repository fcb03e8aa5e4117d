"""`vit models`: the named models. It needs the package alone, without its extras."""

import fnmatch
from argparse import ArgumentParser
from collections.abc import Sequence

from vit_pytorch.cli.tables import print_json, table
from vit_pytorch.registry import entries, list_models
from vit_pytorch.trained import list_trained, read_card, shown_accuracy


def models(arguments: Sequence[str]) -> None:
    """Parse the options of `vit models` and run it."""
    parser = ArgumentParser(prog="vit models", description=(print_models.__doc__ or "").partition("\n")[0])
    parser.add_argument("pattern", nargs="?", default="*", help="wildcard, or a part of the names")
    parser.add_argument(
        "--pretrained", action="store_true", help="list the trained models that ship with the package"
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON instead of a table")
    print_models(**vars(parser.parse_args(arguments)))


def print_models(pattern: str = "*", pretrained: bool = False, as_json: bool = False) -> None:
    """List the named models: architecture, parameters with 1000 classes, input size.

    Args:
        pattern: Shell-style wildcard, or a part of the names.
        pretrained: List the trained models that ship with the package: accuracy on the test images, data and
            terms.
        as_json: Print JSON instead of a table.

    Raises:
        ValueError: Where no name matches.
    """
    known = list_trained() if pretrained else tuple(list_models())
    names = fnmatch.filter(known, pattern) or fnmatch.filter(known, f"*{pattern}*")
    if not names:
        option = " --pretrained" * pretrained
        raise ValueError(f"no model's name matches {pattern!r}; `vit models{option}` lists all of them")
    if pretrained:
        print_trained(names, as_json)
        return
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


def print_trained(names: Sequence[str], as_json: bool) -> None:
    """Print trained models with their accuracy, data and terms, or as JSON their whole cards."""
    cards = [read_card(name) for name in names]
    if as_json:
        print_json(cards)
        return
    shown = [
        [card["name"], f"{card['parameters']:,}", shown_accuracy(card), card["data"], card["terms"]]
        for card in cards
    ]
    print(table(["name", "parameters", "accuracy", "data", "terms of the data"], shown, right=(1, 2)))
