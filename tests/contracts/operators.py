"""The operators of exported models, and the models that together have all of them.

A converter translates a graph operator by operator, and optimizes it by looking at neighbours. So a model
adds nothing to a test of conversion if each of its operators, as it is called, and each pair of neighbours is
in the graph of a model that is converted anyway. `python -m tests.contracts.operators` records such models in
`operators.json`, a fingerprint of each operator beside the first model that has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from tests.contracts.conftest import cases
from tests.slow import REPRESENTATIVE

FILE = Path(__file__).with_suffix(".json")
# Another version of PyTorch has other graphs.
TORCH = ".".join(torch.__version__.split(".")[:2])


def operators(program: ExportedProgram) -> set[str]:
    """Return fingerprints of the operators of a program, as they are called, and of pairs of neighbours."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return {sha256(text.encode()).hexdigest()[:12] for node in calls for text in descriptions(node)}


def descriptions(node: Node) -> Iterator[str]:
    """Yield the call of a node, then the pairs of it and each node that it takes from."""
    options = sorted((name, kind(value)) for name, value in node.kwargs.items())
    yield f"{node.target} {kind(node.args)} {options}"
    for source in node.all_input_nodes:
        yield f"{source.target if source.op == 'call_function' else source.op} {node.target}"


def kind(value: Any) -> str:
    """Describe an argument: the type and rank of a tensor, the sign of a number, what else it is."""
    if isinstance(value, Node):
        value = value.meta["val"]
        if isinstance(value, Tensor):
            return f"{value.dtype} {value.ndim}"
        return type(value).__name__
    if isinstance(value, (list, tuple)):
        if all(type(item) is int for item in value):
            return str(sorted({kind(item) for item in value}))
        return str([kind(item) for item in value])
    if type(value) in (int, float):
        return str((value > 0) - (value < 0))
    return str(value)


@cache
def converted() -> dict[str, set[str]]:
    """Return the recorded models that are among the contracts' now, and the operators each stands for.

    None, if another version of PyTorch recorded them.
    """
    recorded = json.loads(FILE.read_text())
    if recorded["torch"] != TORCH:
        return {}
    names = {entry.name for entry in cases()}
    return {name: set(found.split()) for name, found in recorded["models"].items() if name in names}


def cover(found: dict[str, set[str]]) -> dict[str, str]:
    """Choose models that have all operators, and say which of them each is the first to have.

    Those of `make test` come first, then each time the model most of whose operators are new.
    """
    left = set().union(*found.values())
    order = [name for name in found if name in REPRESENTATIVE]
    chosen = {}
    while left:
        name = order.pop(0) if order else max(found, key=lambda name: len(found[name] & left))
        chosen[name] = " ".join(sorted(found[name] & left))
        left -= found[name]
    return chosen


if __name__ == "__main__":
    from tests.contracts.test_compile import export_tiny

    models = cover({entry.name: operators(export_tiny(entry)[2]) for entry in cases()})
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in models.items())
    FILE.write_text(f'{{"torch": "{TORCH}", "models": {{\n{lines}\n}}}}\n')
    print(f"{len(models)} of {len(cases())} models have all operators")
