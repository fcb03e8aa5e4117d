"""The shapes in the signatures hold: layers and the contracts that call models run once more with checking.

Tracing does not go through the checker, so compile and export stay out; so do wrong arguments and inputs,
which it would refuse before the model does.
"""

import os
import subprocess
import sys

import pytest

CONTRACTS = "tests/contracts"
# In parts, which processes share. A forward pass of each kind and one step of training show each model's
# shapes; what else is called with tensors needs no more models than `make test` takes. Other types of values,
# further numbers of channels and copies of a model have no shapes of their own.
PARTS = {
    "forward": [
        "-k",
        "noticed or 5] or smaller_inputs or dropout_only or checkpointing",
        f"{CONTRACTS}/test_forward.py",
        f"{CONTRACTS}/test_gradients.py",
    ],
    "inside": [
        "-m",
        "not slow",
        "-k",
        "not (deepcopy or pickle or state_dict or save_and_load or to_copy)",
        "tests/layers",
        *(f"{CONTRACTS}/test_{name}.py" for name in ("extractor", "features", "recorder", "state")),
    ],
}


@pytest.mark.parametrize("part", PARTS)
def test_shapes_hold(root, part):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--jaxtyping-packages=vit_pytorch,beartype.beartype"]
    command += ["tests/architecture/shapes_are_checked.py", *PARTS[part]]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ran = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr
