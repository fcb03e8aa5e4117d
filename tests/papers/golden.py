"""Reading a fixture of `tests/golden/`: official weights, input and output of a small model."""

from benchmarks.references import GOLDEN, read_golden

__all__ = ["GOLDEN", "read_golden"]
