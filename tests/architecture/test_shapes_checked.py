"""The shapes in the signatures hold: layers and contracts run once more with checking switched on.

Tracing does not go through the checker, so compile and export stay out; so do wrong arguments and inputs,
which it would refuse before the model does.
"""

import os
import subprocess
import sys

LEFT_OUT = (
    "tests/contracts/test_arguments.py",
    "tests/contracts/test_compile.py",
    "tests/contracts/test_inputs.py",
    "tests/contracts/test_tools.py",
)


def test_shapes_hold(root):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--jaxtyping-packages=vit_pytorch,beartype.beartype"]
    command += ["tests/architecture/shapes_are_checked.py", "tests/layers", "tests/contracts"]
    command += [f"--ignore={path}" for path in LEFT_OUT]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr
