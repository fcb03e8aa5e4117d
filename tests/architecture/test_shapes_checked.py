"""The shapes in the signatures hold: layers and contracts run once more with checking switched on.

Tracing does not go through the checker, so compile and export stay out; so do wrong arguments and inputs,
which it would refuse before the model does.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONTRACTS = Path(__file__).parents[1] / "contracts"
LEFT_OUT = {"test_arguments", "test_compile", "test_inputs", "test_tools"}
INSIDE = ("test_extractor", "test_recorder")
# In parts, which processes share; looking inside needs no more models than `make test` takes.
PARTS = {
    "layers": ["tests/layers"],
    "inside": ["-m", "not slow", *(f"{CONTRACTS}/{name}.py" for name in INSIDE)],
    "contracts": sorted(
        path.as_posix() for path in CONTRACTS.glob("test_*.py") if path.stem not in {*LEFT_OUT, *INSIDE}
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_shapes_hold(root, part):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--jaxtyping-packages=vit_pytorch,beartype.beartype"]
    command += ["tests/architecture/shapes_are_checked.py", *PARTS[part]]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr
