"""Which part may import which, and what an import costs."""

import ast
import subprocess
import sys

import vit_pytorch

ORDER = (
    {"layers"},
    {"legacy", "storage", "extras", "lettering"},
    {"weights", "base", "ssl", "preprocessing"},
    {"isotropic", "hierarchical"},
    {"papers"},
    {"registry"},
    {"pretrained", "trained"},
    {"create"},
    {"__init__"},
    {"data"},
    {"training", "analysis", "export"},
    {"cli"},
    {"__main__"},
)
HEAVY = [
    *("lightning", "pytorch_lightning", "torchmetrics", "torchvision", "torchdata", "tensorboard"),
    *("matplotlib", "sklearn", "pandas", "PIL", "jsonargparse", "datasets", "webdataset"),
    *("timm", "transformers", "onnx", "onnxruntime", "openvino"),
]


def rank(part: str, files: set[str]) -> int:
    """Place a module or folder at the package's root in the order of imports."""
    known = set.union(*ORDER)
    part = part if part in known or part not in files else "papers"
    assert part in known, f"{part} has no place in the order of imports"
    return next(place for place, parts in enumerate(ORDER) if part in parts)


def imported(tree: ast.Module) -> set[str]:
    """Give the parts of the package that a file imports anywhere in it."""
    parts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            names = [node.module or ""]
            if node.module == "vit_pytorch":
                own = {*vit_pytorch.__all__, "__version__"}
                names += [f"vit_pytorch.{alias.name}" for alias in node.names if alias.name not in own]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "vit_pytorch":
                parts.add(rest.split(".")[0] or "__init__")
    return parts


def test_direction_of_imports(modules):
    files = {module.name for module in modules if "/" not in module.name}
    wrong = [
        f"{module.name} imports {part}"
        for module in modules
        for part in imported(module.tree)
        if rank(part, files) > rank(module.part, files)
    ]
    assert wrong == []


def test_nothing_heavy_is_imported(root):
    code = f"import sys, vit_pytorch; print([name for name in {HEAVY} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_commands_that_use_a_model_import_nothing_for_training(root):
    """It would take half of the time in which they start."""
    code = (
        "import sys; from vit_pytorch.cli import bench, embed, explain, export, use;"
        "print(sorted({'lightning', 'torchmetrics'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_modules_that_windows_lacks_are_guarded(modules):
    """Each stands in a `try` that does without it."""
    lacking = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    wrong = []
    for module in modules:
        guarded = {
            part for node in ast.walk(module.tree) if isinstance(node, ast.Try) for part in ast.walk(node)
        }
        for node in ast.walk(module.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in guarded:
                names = (
                    [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                )
                wrong += [f"{module.name}:{node.lineno} imports {name}" for name in names if name in lacking]
    assert wrong == []
