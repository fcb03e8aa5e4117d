"""Run timm's own tests of models with the models of this package.

    python -m tools.peers                 # names that timm and this package have, up to 100 M parameters
    python -m tools.peers 'vit_tiny*' deit3_small_patch16_224 -- -k forward

fetches the source distribution of the installed timm and runs its `tests/test_models.py` with `create_model`
and `list_models` replaced; nothing of it is kept in the repository. What stands behind `--` goes to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv" / "peers"
PATTERNS = "PEER_NAMES"
LARGEST = 100_000_000
# tests of each model; the rest are of single models of timm's, by its own attributes
TESTS = (
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_default_cfgs_non_std",
    "test_model_forward_features",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_model_forward_fx",
    "test_model_backward_fx",
)
# test and model, as patterns, that cannot pass: the reason
EXCEPTIONS = {
    (
        "test_model_default_cfgs_non_std",
        "mixer_*",
    ): "calls set_input_size, which timm's own Mixer does not have: "
    "its mixing of tokens has weights for places",
    (
        "test_model_backward",
        "convmixer_768_32",
    ): "gives 128 x 128 pixels, which patches of 7 x 7 do not divide; "
    "timm leaves the rest out without a word",
    ("test_model_*_fx", "*_dinov3*"): "traces at another size than the model's; what torch.fx traces has the "
    "rotations of one grid",
}


def fetch() -> Path:
    """Return the folder of timm's source distribution, fetched where it is not there yet."""
    name = f"timm-{version('timm')}"
    folder = FOLDER / name
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--no-binary", ":all:", "--dest", str(FOLDER)]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, name.replace("-", "==")], check=True
        )
        with tarfile.open(FOLDER / f"{name}.tar.gz") as archive:
            archive.extractall(FOLDER, filter="data")
    return folder


def main() -> int:
    """Run the tests of the names that a command line asks for."""
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="python -m tools.peers", description=__doc__)
    parser.add_argument("names", nargs="*", default=["*"], help="names of models, as shell patterns")
    patterns = parser.parse_args(arguments[:cut]).names
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tools.peers",
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb=line",
    ]
    environment = {**os.environ, PATTERNS: "\n".join(patterns), "PYTHONPATH": str(ROOT)}
    tests = ["-W", "ignore", "tests/test_models.py", *arguments[cut + 1 :]]
    return subprocess.run([*command, *tests], cwd=fetch(), env=environment, check=False).returncode


def pytest_configure(config: Any) -> None:
    """Put this package's models in place of timm's, before the tests are imported."""
    import timm

    from vit_pytorch import create_model
    from vit_pytorch.registry import entries

    patterns, theirs = os.environ[PATTERNS].split("\n"), timm.list_models

    def list_models(*args: Any, **kwargs: Any) -> list[str]:
        """List the names that both have, each with one tag, if with any."""
        found = {name.partition(".")[0]: name for name in reversed(theirs(*args, **kwargs))}
        return [full for name, full in sorted(found.items()) if name in entries() and wanted(name)]

    def wanted(name: str) -> bool:
        small = entries()[name].parameters <= LARGEST or name in patterns
        return small and any(fnmatchcase(name, pattern) for pattern in patterns)

    timm.list_models = list_models
    timm.create_model = create_model  # type: ignore[assignment]


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep the tests of each model; mark those that cannot pass."""
    import pytest

    # A test that is for none of the names has no name.
    items[:] = [
        item
        for item in items
        if item.originalname in TESTS and isinstance(item.callspec.params["model_name"], str)
    ]
    for item in items:
        for reason in reasons(item):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def reasons(item: Any) -> Iterator[str]:
    """Return why a test of a model cannot pass, if there is a reason."""
    name = item.callspec.params["model_name"]
    for (test, pattern), reason in EXCEPTIONS.items():
        if fnmatchcase(item.originalname, test) and fnmatchcase(name, pattern):
            yield reason


if __name__ == "__main__":
    sys.exit(main())
