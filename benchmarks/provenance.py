"""Where and when a figure was measured, as a row of a JSON file keeps it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, str]:
    """Return date, machine, commit and version of PyTorch, for the rows that are measured now."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} × {processor()}",
        "commit": commit(),
        "torch": torch.__version__.partition("+")[0],
    }


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the package, with a plus sign if its files have been changed since."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run(
        [*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True
    )
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "vit_pytorch"], check=False)
    return found.stdout.strip() + "+" * (changed.returncode != 0)
