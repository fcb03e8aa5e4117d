"""Memory that is freed stays with the process, as the count of page faults tells."""

import os
import platform
import subprocess
import sys

import pytest

from vit_pytorch.cli.memory import TOLD

FAULTS = """
import resource, sys
import torch
from vit_pytorch.cli.memory import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()

def step():
    parts = [torch.ones(1 << 20) for _ in range(30)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> int:
    env = {name: value for name, value in os.environ.items() if name not in TOLD}
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, env={**env, **environment}, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept() -> None:
    assert faults("keep") < 1_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_the_environment_has_the_last_word() -> None:
    """Blocks from 128 KiB on go back at once where the environment says so."""
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="131072") > 10_000
