"""How much of the package a reader goes through to follow one forward pass, and how large the classes are.

`python -m tests.architecture.test_forward` prints the table.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import CodeType, FrameType

import pytest
import torch
from torch import nn

import vit_pytorch
from vit_pytorch import list_models
from vit_pytorch.base import VisionModel
from vit_pytorch.create import UNNAMED
from vit_pytorch.registry import ModelEntry, find_entry
from vit_pytorch.vit import ViT

PACKAGE = Path(vit_pytorch.__file__).parent
# The papers that all others are read against: most files and functions of one forward pass.
PLAIN = {"ViT": (6, 22), "CaiT": (6, 25)}
MOST_FILES = 8
MOST_ARGUMENTS = 30
DEEPEST = 3
# Classes that are deeper, each with the reason.
DEEPER = {
    "vit_pytorch.distill.DistillableViT": "a ViT, whose weights and options it shares, with one more token",
    "vit_pytorch.distill.DistillableT2TViT": "a T2T-ViT with one more token",
    "vit_pytorch.distill.DistillableEfficientViT": "a ViT around any encoder with one more token",
    "vit_pytorch.regionvit.LocalBias": "a table of offsets that the authors index around the centre",
    "vit_pytorch.na_vit_nested_tensor.NaViT": "NaViT in another container of features",
    "vit_pytorch.na_vit_nested_tensor_3d.NaViT3D": "NaViT of arrays with one more axis",
    "vit_pytorch.levjepa.VideoTransformer": "an encoder of arrays, of videos",
    **{
        f"vit_pytorch.{module}.{UNNAMED[module]}": "a ViT with an option, under a signature of its own"
        for module in (
            "max_vit_with_registers",
            "simple_flash_attn_vit",
            "simple_flash_attn_vit_3d",
            "simple_uvit",
            "simple_vit_1d",
            "simple_vit_with_hyper_connections",
            "simple_vit_with_patch_dropout",
            "simple_vit_with_qk_norm",
            "simple_vit_with_register_tokens",
            "simple_vit_with_value_residual",
            "vit_5",
            "vit_nd_pope",
            "vit_with_patch_dropout",
        )
    },
}
# Architectures whose forward stands in another file, each with the reason.
FORWARD_ELSEWHERE = {
    "DistillableViT": "a ViT with one more token and classifier",
}


def architectures() -> dict[type[VisionModel], ModelEntry]:
    """Return every architecture of the registry with its first model, known ones for the ViT and CaiT."""
    entries = [find_entry(name) for name in ("vit_tiny_patch16_224", "cait_xxs24_224", *list_models())]
    first: dict[type[VisionModel], ModelEntry] = {}
    for entry in entries:
        first.setdefault(entry.architecture, entry)
    return first


@cache
def functions_of_a_forward(architecture: type[VisionModel]) -> frozenset[CodeType]:
    """Return the functions of the package that one forward pass of the tiny model runs, in eval mode.

    Comprehensions, generator expressions and lambdas belong to the function in which they are written.
    """
    entry = architectures()[architecture]
    model = entry.build(**entry.tiny).eval()
    images = torch.zeros(2, model.channels, *model.image_size)
    ran: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<") and _is_ours(code.co_filename):
            ran.add(code)

    with torch.no_grad():
        # What is computed once and kept is not part of what runs.
        model(images)
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            model(images)
        finally:
            sys.setprofile(before)
    return frozenset(ran)


@cache
def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(PACKAGE)


def files_of(functions: frozenset[CodeType]) -> set[str]:
    """Return the files in which functions are written."""
    return {_file(code) for code in functions}


def _file(code: CodeType) -> str:
    return Path(code.co_filename).relative_to(PACKAGE).as_posix()


def listing(functions: frozenset[CodeType]) -> str:
    """Describe functions for the message of a failed test: a line for each file."""
    lines = []
    for file in sorted(files_of(functions)):
        here = sorted((code for code in functions if _file(code) == file), key=lambda c: c.co_firstlineno)
        lines.append(f"{file}: " + ", ".join(f"{code.co_name}:{code.co_firstlineno}" for code in here))
    return "\n".join(lines)


def arguments_of(architecture: type[VisionModel]) -> list[str]:
    """Return the arguments of a constructor; those that each stage has (`s1_depth`, `s2_depth`), once."""
    names = [name for name in inspect.signature(architecture.__init__).parameters if name != "self"]
    return list(dict.fromkeys(re.sub(r"^s\d_", "s_", name) for name in names))


def classes() -> Iterator[type[nn.Module]]:
    """Yield every module class that the package defines."""
    for info in walk_packages([str(PACKAGE)], "vit_pytorch."):
        if info.name.endswith("__main__"):
            continue
        for value in vars(import_module(info.name)).values():
            if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == info.name:
                yield value


def depth_of(found: type) -> int:
    """Count the classes of the package on the longest way from a class up to `nn.Module`."""
    if not issubclass(found, nn.Module):
        return 0
    return found.__module__.startswith("vit_pytorch") + max(map(depth_of, found.__bases__))


def by_architecture(function):
    """Parametrise a test by architecture."""
    params = [pytest.param(found, id=entry.name) for found, entry in architectures().items()]
    return pytest.mark.parametrize("architecture", params)(function)


@by_architecture
def test_one_forward_runs_few_files(architecture: type[VisionModel]):
    functions = functions_of_a_forward(architecture)
    most = PLAIN.get(architecture.__name__, (MOST_FILES,))[0]
    # Variants have files of their own in addition to NaViT's and Hiera's; Gemma 4's adds positions, rotates
    # by them, and has RMSNorms.
    most += architecture.__module__ in (
        "vit_pytorch.na_vit_nested_tensor",
        "vit_pytorch.sam2_hiera",
        "vit_pytorch.gemma4_vit",
    )
    assert 2 <= len(files_of(functions)) <= most, listing(functions)


@pytest.mark.parametrize("name", PLAIN)
def test_one_forward_of_a_plain_paper_runs_few_functions(name: str):
    (architecture,) = (found for found in architectures() if found.__name__ == name)
    functions = functions_of_a_forward(architecture)
    assert 5 <= len(functions) <= PLAIN[name][1], listing(functions)


@by_architecture
def test_constructors_are_short(architecture: type[VisionModel]):
    most = MOST_ARGUMENTS if architecture is ViT else len(arguments_of(ViT))
    assert len(arguments_of(architecture)) <= most


@by_architecture
def test_the_forward_stands_in_the_file_of_the_paper(architecture: type[VisionModel]):
    own = inspect.getsourcefile(architecture)
    assert own is not None
    assert Path(own).parent == PACKAGE
    found = inspect.unwrap(architecture.forward_features).__code__.co_filename
    if architecture.__name__ in FORWARD_ELSEWHERE:
        assert found != own, f"{architecture.__name__} has a forward_features of its own: no exception is due"
    else:
        assert Path(found).name == Path(own).name


def test_exceptions_are_architectures():
    assert FORWARD_ELSEWHERE.keys() <= {found.__name__ for found in architectures()}


def test_inheritance_is_shallow():
    deep = {f"{found.__module__}.{found.__name__}": depth_of(found) for found in classes()}
    assert len(deep) > 50
    assert {name for name, depth in deep.items() if depth > DEEPEST} == DEEPER.keys()


def test_what_blocks_get_is_typed(modules):
    """No `*context: Any`: what blocks get in addition to tokens has names and types."""
    found = [
        f"{module.name}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        if node.args.vararg is not None and node.args.vararg.arg == "context"
    ]
    assert found == []


def main() -> None:
    """Print files and functions of one forward pass, and arguments, of every architecture."""
    print(f"{'model':38} {'class':16} files functions arguments")
    for found, entry in architectures().items():
        functions = functions_of_a_forward(found)
        counts = f"{len(files_of(functions)):5} {len(functions):9} {len(arguments_of(found)):9}"
        print(f"{entry.name:38} {found.__name__:16} {counts}")


if __name__ == "__main__":
    main()
