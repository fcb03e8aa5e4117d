"""Names that begin with an underscore belong to whoever wrote them, and may change in any release."""

import ast
from pathlib import Path

import vit_pytorch

ROOT = Path(vit_pytorch.__file__).parent
# names that have no public twin, with the reason
ALLOWED = {
    ("cli/model_options.py", "_hub_mixin_init_parameters"): "the arguments that huggingface_hub saves",
    ("export/aoti.py", "_inductor"): "the documented entry of AOTInductor",
    ("export/coreml.py", "_mil_program"): "the weights of a converted program, before they are written",
    ("pretrained/extents.py", "_hub_mixin_init_parameters"): "the arguments that huggingface_hub saves",
    ("cli/train.py", "_actions"): "the options of a parser, of which argparse has no public list",
    ("registry/entry.py", "_hub_mixin_init_parameters"): "the arguments that huggingface_hub saves",
    ("pretrained/agreement.py", "_hub_mixin_init_parameters"): "the arguments that huggingface_hub saves",
    ("layers/blocks.py", "_BatchNorm"): "the common class of all batch norms",
    ("layers/blocks.py", "_buffers"): "statistics are exchanged while a graph is traced",
    ("layers/relative.py", "_forward_hooks"): "whether anybody watches a module",
    ("layers/relative.py", "_forward_pre_hooks"): "whether anybody watches a module",
    ("recorder.py", "_modules"): "submodules as they are registered, as often as they occur",
    ("twins_svt.py", "_modules"): "the order of submodules, by which old optimizer states are numbered",
    ("ssl/backbone.py", "_pos_embed"): "how timm's models add positions",
    ("ssl/teacher.py", "_foreach_lerp_"): "one kernel for all tensors",
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own(value: ast.expr) -> bool:
    """Whether an attribute is looked up on an object of the class that uses it."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def foreign_names(tree: ast.Module) -> set[str]:
    """Return the private names of others that a module uses or imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and not own(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            names = [*module, *(alias.name for alias in node.names)]
            found |= {name for name in names if private(name)} if module[0] != "vit_pytorch" else set()
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".") if private(part)}
    # methods that every named tuple has
    return found - {"_asdict", "_replace", "_fields", "_make"}


def test_private_names_of_others_are_left_alone():
    used = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in ROOT.rglob("*.py")
        for name in foreign_names(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert sorted(used - ALLOWED.keys()) == []


def test_the_check_finds_what_it_looks_for():
    text = (
        "import torch._dynamo\nfrom lib import _Fetcher\nloop._should_stop()\nself._own\nsuper()._apply(f)\n"
    )
    assert foreign_names(ast.parse(text)) == {"_dynamo", "_Fetcher", "_should_stop"}
