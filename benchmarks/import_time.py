"""Compare the time of `import vit_pytorch` with that of `import torch`, in turn, in fresh processes.

python benchmarks/import_time.py
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

ROUNDS = 15
CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(module: str) -> float:
    """Time one import in a fresh process."""
    command = [sys.executable, "-c", CODE.format(module)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print both medians and their ratio."""
    for module in ("torch", "vit_pytorch"):
        seconds(module)
    pairs = [(seconds("torch"), seconds("vit_pytorch")) for _ in range(ROUNDS)]
    torch, ours = (median(times) for times in zip(*pairs, strict=True))
    print(f"import torch {torch:.3f} s, import vit_pytorch {ours:.3f} s, ratio {ours / torch:.3f}")


if __name__ == "__main__":
    main()
